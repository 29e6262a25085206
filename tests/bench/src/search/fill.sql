-- Yesterday's events, $EVENTS of them, as a cluster of 200 nodes and 5,000 pods may have them: few pods, addresses and words are
-- frequent and most are rare (a frequency of 1 in their rank); a pod is on one node and has three types of 18; each type has up
-- to five reasons. Numbers are far from those that the aggregator gives.
set synchronous_commit = off;
set maintenance_work_mem = '1GB';
insert into sonde_store.nodes (name) select 'far-' || g from generate_series(1, 200) g;
insert into sonde_store.pods (id, node_id, sandbox, namespace, name, workload, valid_from)
select 1000000 + g, (select min(id) from sonde_store.nodes where name like 'far-%') + g % 200, 'far-' || g, 'ns-' || g % 10, 'pod-' || g,
       'work-' || g % 250, now() - interval '3 days'
from generate_series(1, 5000) g;
insert into sonde_store.strings (id, text)
select 1000000 + g, case when g < 100 then 'far-probe-' || g when g < 200 then 'FAR_TYPE_' || g when g < 1000 then 'FAR_REASON_' || g
                         else 'far-comm-' || g end
from generate_series(1, 3000) g;
insert into sonde_store.stacks (digest, frames)
select sha256(('far' || g)::bytea),
       array(select 'far_function_' || (g * 7919 + i * 31) % 4000 || '+0x' || to_hex(i * 17) from generate_series(1, 20) i)
from generate_series(1, 3000) g;
insert into $LEAF (time, id, node_id, pod_id, probe, type, reason, protocol, saddr, sport, daddr, dport, direction, latency_ns, cpu,
                   pid, comm, state, interface, suppressed, stack_id, attributes)
select $DAY::timestamptz + i * (86390.0 / $EVENTS) * interval '1 second' + random() * interval '2 seconds',
       (select last from sonde_store.event_ids) + i,
       (select min(id) from sonde_store.nodes where name like 'far-%') + pod % 200, 1000000 + pod,
       1000001 + ty % 8, 1000100 + ty, 1000200 + ty * 8 + (4 * random() * random())::int, 1002000 + (random() * 1.2)::int,
       '10.0.0.0'::inet + pod, 1024 + (random() * 60000)::int, '10.64.0.0'::inet + floor(20000 ^ random())::int,
       (array[80, 443, 5432, 6379, 8080, 53])[1 + floor(6 * random() * random())::int], 1 + (random() * 1.4)::int,
       case when ty % 3 = 0 then (1000000 * exp(random() * 9))::bigint end, (random() * 16)::int, 1 + (random() * 30000)::int,
       1001000 + floor(1000 ^ random())::int, 1002010 + (random() * 5)::int, 1002100 + (random() * 2)::int, 0,
       case when ty % 2 = 0 then (select min(id) from sonde_store.stacks where frames[1] like 'far%') + floor(3000 ^ random())::int end,
       case when ty % 4 = 0 then jsonb_build_object('length', (random() * 1500)::int::text,
                                                    'rule', 'chain FORWARD rule ' || floor(500 ^ random())::int) end
from (select i, pod, (pod * 7 + floor(3 * random() * random())::int) % 18 as ty
      from (select i, floor(5000 ^ random())::int as pod from generate_series(1, $EVENTS) i) pods) events;
-- Only now are there such ids: the digest is not to pass over them.
alter table sonde_store.events attach partition $LEAF for values from ($DAY) to ($NEXT);
update sonde_store.event_ids set last = last + $EVENTS;
