-- Event 1 is summed up by these too.
do $$
declare
    day date := (now() at time zone 'utc')::date;
    name text;
begin
    foreach name in array '{event_words_1h,event_ends_1h}'::text[] loop
        execute format('create table sonde_parts.%I (like sonde_store.%I including defaults)',
                       name || '_' || to_char(day, 'YYYYMMDD'), name);
        execute format('alter table sonde_store.%I attach partition sonde_parts.%I for values from (%L) to (%L)',
                       name, name || '_' || to_char(day, 'YYYYMMDD'), day || ' 00:00:00+00', day + 1 || ' 00:00:00+00');
    end loop;
end $$;
update sonde_store.event_digest set values_after = 0;
insert into sonde_store.event_subjects_1h (time, node_id, pod_id, probe, type, n)
select date_trunc('hour', time, 'UTC'), node_id, pod_id, probe, type, 1 from sonde_store.events where id = 1;
insert into sonde_store.event_ends_1h (time, type, field, address, n)
select date_trunc('hour', time, 'UTC'), t, 1, saddr, 1 from sonde_store.events cross join lateral (values (0), (type)) v(t)
where id = 1;
insert into sonde_store.event_words_1h (time, type, field, word, n)
select date_trunc('hour', time, 'UTC'), t, 4, coalesce(dport, -1), 1 from sonde_store.events cross join lateral (values (0), (type)) v(t)
where id = 1;
