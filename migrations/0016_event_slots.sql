-- No statistics of slots: the newest are in none that there are, so that the planner takes them to hold nothing, asks the index for
-- these alone, and looks into all events of the last minutes. Without any it takes each to be a two-hundredth of the day.
-- Partitions that come later: see event_indexes.rs.
do $$
declare
    leaf regclass;
begin
    for leaf in
        select i.inhrelid::regclass from pg_inherits i join pg_class parent on parent.oid = i.inhparent
        where parent.relnamespace = 'sonde_store'::regnamespace and parent.relname in ('events_find', 'events_slow')
    loop
        execute format('alter index %s alter column 1 set statistics 0', leaf);
    end loop;
end $$;
