-- What a writer leaves in a database of migration 1. Days are those of today, as retention would drop others.
insert into sonde_store.nodes (id, name, boot_id, version, kernel, interval_ns) overriding system value values
    (1, 'old-1', '09090909-0909-0909-0909-090909090909', '0.1.0', '6.1.0', 5000000000),
    (2, 'old-2', null, '0.1.0', '6.1.0', 5000000000);
select setval(pg_get_serial_sequence('sonde_store.nodes', 'id'), 2);
insert into sonde_store.strings (id, text) values
    (1, 'netdev'), (2, 'PACKETLOSS'), (3, 'NETFILTER_DROP'), (4, 'TCP'), (5, 'eth0'), (6, 'lo');
select setval(pg_get_serial_sequence('sonde_store.strings', 'id'), 6);
insert into sonde_store.stacks (id, digest, frames) overriding system value values
    (1, '\x01', '{nft_do_chain+0x4f1,ip_rcv+0x1}');
select setval(pg_get_serial_sequence('sonde_store.stacks', 'id'), 1);
insert into sonde_store.pods (id, node_id, sandbox, uid, namespace, name, workload_kind, workload, netns_inode,
                              netns_cookie, ips, labels, valid_from, valid_to) values
    (1, 1, 'old-sandbox-1', 'uid-1', 'shop', 'web-0', 'StatefulSet', 'web', 4026532000, 18446744073709551615, '{10.0.0.2}',
     '{"app":"web"}', now() - interval '1 day', null),
    (2, 2, 'old-sandbox-2', 'uid-2', 'shop', 'db-0', '', '', 0, 0, '{10.0.0.3,fd00::3}', '{}', now() - interval '1 day', now());
select setval(pg_get_serial_sequence('sonde_store.pods', 'id'), 2);
insert into sonde_store.cursors (node_id, epoch, sequence) values
    (1, '01010101-0101-0101-0101-010101010101', 7), (2, '02020202-0202-0202-0202-020202020202', 3);
insert into sonde_store.probes (name, help, definition) values ('netdev', 'devices',
    '{"labels": [{"name": "device", "help": "the device"}],
      "columns": [
        {"name": "receive_bytes", "help": "help of receive_bytes", "kind": "counter", "unit": "bytes", "scale": 1.0, "bounds": []},
        {"name": "wait_seconds", "help": "help of wait_seconds", "kind": "gauge", "unit": "seconds", "scale": 1e-9, "bounds": []},
        {"name": "latency_seconds", "help": "help of latency_seconds", "kind": "histogram", "unit": "seconds", "scale": 1e-9,
         "bounds": [0.001, 0.01]}],
      "event_types": [{"name": "PACKETLOSS", "help": "a loss"}]}');

create table sonde_store.probe_netdev (
    time timestamptz not null, node_id int not null, pod_id int not null) partition by range (time);
create index on sonde_store.probe_netdev (pod_id, time);
create index on sonde_store.probe_netdev using brin (time) with (autosummarize = on);
alter table sonde_store.probe_netdev add column "device" int not null default 0;
alter table sonde_store.probe_netdev add column "receive_bytes" bigint;
alter table sonde_store.probe_netdev add column "wait_seconds" bigint;
alter table sonde_store.probe_netdev add column "latency_seconds" bigint[];

do $$
declare
    day date := (now() at time zone 'utc')::date;
    name text;
begin
    foreach name in array array['events', 'gaps', 'probe_netdev'] loop
        execute format('create table sonde_parts.%I (like sonde_store.%I including defaults)',
                       name || '_' || to_char(day, 'YYYYMMDD'), name);
        execute format('alter table sonde_store.%I attach partition sonde_parts.%I for values from (%L) to (%L)',
                       name, name || '_' || to_char(day, 'YYYYMMDD'), day || ' 00:00:00+00', day + 1 || ' 00:00:00+00');
    end loop;
end $$;

insert into sonde_store.probe_netdev values
    (date_trunc('day', now(), 'utc') + interval '1 second', 1, 1, 5, 1000, 1500000000, '{3,2,1,7}'),
    (date_trunc('day', now(), 'utc') + interval '6 seconds', 1, 1, 5, 1100, null, '{4,2,1,8}'),
    (date_trunc('day', now(), 'utc') + interval '6 seconds', 1, 0, 6, 50, 0, null);
insert into sonde_store.events (time, id, node_id, pod_id, peer_pod_id, probe, type, reason, protocol, saddr, sport, daddr,
                                dport, direction, latency_ns, cpu, pid, interface, suppressed, stack_id, attributes) values
    (date_trunc('day', now(), 'utc') + interval '2 seconds', 1, 1, 1, 2, 1, 2, 3, 4, '10.0.0.2', 40000, '10.0.0.3', 5432, 2,
     1000000, 3, 4711, 5, 9, 1, '{"rule": "drop"}'),
    (date_trunc('day', now(), 'utc') + interval '3 seconds', 2, 2, null, null, 1, 2, null, null, null, null, null, null, 0,
     null, null, null, null, 0, null, null);
update sonde_store.event_ids set last = 2;
insert into sonde_store.gaps (from_time, to_time, node_id, pod_id, probe, cause, count, detail) values
    (date_trunc('day', now(), 'utc') + interval '4 seconds', date_trunc('day', now(), 'utc') + interval '5 seconds', 1, 0,
     'netdev', 'ring_full', 12, 'in words');
