-- The view of a probe, which is made with its table since there is a schema for views.
create view sonde.netdev as
select r.time as "time", n.name as "node", p.namespace as "namespace", p.name as "pod", l0.text as "device",
       r."receive_bytes" as "receive_bytes", r."wait_seconds" * 1e-9::double precision as "wait_seconds",
       r."latency_seconds" as "latency_seconds"
from sonde_store.probe_netdev r
join sonde_store.nodes n on n.id = r.node_id
join sonde_store.pods p on p.id = r.pod_id
join sonde_store.strings l0 on l0.id = r."device";
comment on view sonde.netdev is 'devices';
