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

-- What is measured: one row for each column of a probe's view.
create view sonde.catalogue as
select p.name as probe, coalesce(c.value->>'version_of', c.value->>'name') as name, c.value->>'name' as column_name,
       c.value->>'kind' as kind, c.value->>'unit' as unit, c.value->>'help' as help,
       row_number() over same_name as version,
       row_number() over same_name < count(*) over (partition by p.name, coalesce(c.value->>'version_of', c.value->>'name'))
           as superseded,
       (select array_agg(b::float8 order by at) from jsonb_array_elements_text(c.value->'bounds') with ordinality as b(b, at))
           as bounds
from sonde_store.probes p
cross join jsonb_array_elements(p.definition->'columns') with ordinality as c(value, at)
window same_name as (partition by p.name, coalesce(c.value->>'version_of', c.value->>'name') order by c.at);
comment on view sonde.catalogue is 'One row for each column of the views of probes: what it is, and in which version';
comment on column sonde.catalogue.probe is 'Probe, and name of its view';
comment on column sonde.catalogue.name is 'Metric, as collectors call it';
comment on column sonde.catalogue.column_name is 'Column of the view: the name, and behind it _v2 and so on for later versions';
comment on column sonde.catalogue.kind is 'counter, gauge or histogram';
comment on column sonde.catalogue.unit is 'Unit of its values; empty = a plain number';
comment on column sonde.catalogue.help is 'What it says';
comment on column sonde.catalogue.version is '1, and one more each time its kind, unit, scale or bounds changed';
comment on column sonde.catalogue.superseded is 'Whether newer collectors write to a later version';
comment on column sonde.catalogue.bounds is 'Upper bounds of a histogram''s buckets in the unit, without infinity';

do $$
begin
    if exists (select from pg_roles where rolname = 'sonde_reader') then
        grant select on sonde.catalogue to sonde_reader;
    end if;
end $$;
