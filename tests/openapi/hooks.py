"""What the document cannot say, for requests that are to be answered: a range goes forward, a cursor comes from the page
before, a column is one that the probe has. Such requests ask for what is there, so that answers are checked with rows in
them. Requests that are to be refused stay as they were made."""

import schemathesis
from schemathesis.generation import GenerationMode

PROBES = ["packetloss", "tcp", "netdev", "connect", "tcpsummary"]
# Rules between parameters, or beyond a regular expression.
RULED = ["cursor", "from", "to", "at", "all", "step", "ip", "min_latency", "column"]


@schemathesis.hook
def before_call(context, case, kwargs):
    if case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return
    query = case.query if case.query is not None else {}
    for name in RULED:
        query.pop(name, None)
    # Every other request without filters of words: what was made up matches nothing.
    if len(str(query)) % 2 == 0:
        for name, value in list(query.items()):
            if isinstance(value, list):
                del query[name]
    if case.operation.path == "/federate":
        query["match[]"] = ['{__name__=~"sonde_tcp_.+"}', 'sonde_netdev_receive_bytes_total{device!="lo"}']
    if "probe" in case.path_parameters:
        case.path_parameters["probe"] = PROBES[len(str(query)) % len(PROBES)]
    case.query = query
