-- Facts of the cluster, and an event whose other end only they know.
insert into sonde_store.cluster_watches (scope, seen) values ('services', now());
insert into sonde_store.cluster_objects (id, kind, uid, namespace, name, ips, detail, digest, valid_from) values
    (1, 'Service', 'uid-s', 'shop', 'db', '{10.96.0.1}', '{"type": "ClusterIP"}', 1, now() - interval '1 day');
insert into sonde_store.cluster_endpoints (id, slice_uid, namespace, service, ip, pod, node, ready, valid_from) values
    (1, 'uid-e', 'shop', 'db', '10.0.0.3', 'db-0', 'old-2', true, now() - interval '1 day');
do $$
declare
    day date := (now() at time zone 'utc')::date;
begin
    execute format('create table sonde_parts.%I (like sonde_store.changes including defaults)',
                   'changes_' || to_char(day, 'YYYYMMDD'));
    execute format('alter table sonde_store.changes attach partition sonde_parts.%I for values from (%L) to (%L)',
                   'changes_' || to_char(day, 'YYYYMMDD'), day || ' 00:00:00+00', day + 1 || ' 00:00:00+00');
end $$;
insert into sonde_store.changes (time, since, id, kind, namespace, service, after) values
    (date_trunc('day', now(), 'utc') + interval '1 second', date_trunc('day', now(), 'utc'),
     nextval('sonde_store.change_ids'), 'service_created', 'shop', 'db', 'ClusterIP');
update sonde_store.events set peer_pod_id = null, peer_object_id = 1 where id = 1;
update sonde_store.pods set said = '{"workload": "guessed"}' where id = 1;
