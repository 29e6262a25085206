-- One index for every filter of an event search, in place of one for each: half the room, and it answers filters together.
-- It needs the extension btree_gin, which is part of PostgreSQL's contrib (on Debian of the server's own package) and which
-- the owner of a database may create. Without it the indexes of 0001 stay. Partitions that are there get it afterwards, one
-- by one and without a lock that stops writers, and only then do the indexes go that it replaces: see event_indexes.rs.
do $$
begin
    create extension if not exists btree_gin with schema sonde_store;
    create index events_search on only sonde_store.events
        using gin (pod_id, node_id, type, reason, saddr, daddr, sport, dport, comm, stack_id)
        with (gin_pending_list_limit = 1024);
    if not exists (select from pg_inherits where inhparent = 'sonde_store.events'::regclass) then
        drop index sonde_store.events_pod_id_time_id_idx, sonde_store.events_type_time_id_idx;
    end if;
exception
    when insufficient_privilege or undefined_file or feature_not_supported then
        raise warning 'extension btree_gin cannot be created (%): event searches use fewer indexes until it is there', sqlerrm;
end $$;

