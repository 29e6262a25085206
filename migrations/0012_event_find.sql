-- The index for searches, with what it lacked: ten minutes of time, so that what they hold of something is found without all
-- that the day holds of it; the protocol; attributes by their whole values. Latencies likewise. Without the extension
-- btree_gin, of which 0007 tells, the first is not made. Partitions that are there get them afterwards, and then lose the ones
-- before: see event_indexes.rs.
create index events_slow on only sonde_store.events ((floor(extract(epoch from time at time zone 'UTC') / 600)::int), latency_ns)
    where latency_ns is not null;
do $$
begin
    if not exists (select from pg_inherits where inhparent = 'sonde_store.events'::regclass) then
        drop index sonde_store.events_latency;
    end if;
    if not exists (select from pg_extension where extname = 'btree_gin') then
        return;
    end if;
    create index events_find on only sonde_store.events
        using gin ((floor(extract(epoch from time at time zone 'UTC') / 600)::int), pod_id, node_id, type, reason, protocol, saddr, daddr, sport, dport, comm, stack_id,
                   attributes jsonb_path_ops)
        with (gin_pending_list_limit = 1024);
    if not exists (select from pg_inherits where inhparent = 'sonde_store.events'::regclass) then
        drop index sonde_store.events_search;
    end if;
end $$;
