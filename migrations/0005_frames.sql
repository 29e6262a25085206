-- Readings of probes are kept as keyframes (key_<probe>) and differences to them (delta_<probe>), which are made from the
-- catalogue. A frame's number is given out by the aggregator that writes it: each value of this sequence is 65,536 of them.
create sequence sonde_store.frame_blocks;

-- The views of probes compute each value from its keyframe; compiling that takes longer than running it.
do $$
begin
    execute format('alter database %I set jit = off', current_database());
exception
    when insufficient_privilege then
        raise warning 'may not set jit = off for this database: do so for its readers, the views sonde.<probe> are faster without';
end $$;
