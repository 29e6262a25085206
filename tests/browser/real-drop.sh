#!/usr/bin/env bash
# Makes a pod and a client from network namespaces, with a rule that drops what the client sends, and lets a browser watch
# the page of a running system while that happens.
#
#   real-drop.sh http://127.0.0.1:9640
#
# SONDE_PREFIX (default: bt<pid>-) begins the names of the namespaces; the collector must watch them (pods.netns.include).
# Needs root, ip and nft. Takes away what it made, also when it fails.
set -euo pipefail

URL=${1:?usage: real-drop.sh URL-OF-THE-AGGREGATOR}
NAMESPACE="${SONDE_PREFIX:-bt$$-}shop"
SERVER="$NAMESPACE.server"
CLIENT="$NAMESPACE.client"
PORT=4711

cleanup() {
  ip netns delete "$SERVER" 2>/dev/null || true
  ip netns delete "$CLIENT" 2>/dev/null || true
}
trap cleanup EXIT
trap 'exit 130' INT TERM

ip netns add "$SERVER"
ip netns add "$CLIENT"
ip -n "$CLIENT" link add eth0 type veth peer name eth0 netns "$SERVER"
for end in "$SERVER:10.211.47.1" "$CLIENT:10.211.47.2"; do
  ip -n "${end%:*}" address add "${end#*:}/24" dev eth0
  ip -n "${end%:*}" link set lo up
  ip -n "${end%:*}" link set eth0 up
done
ip netns exec "$SERVER" nft -f - <<NFT
table inet fault {
  chain input {
    type filter hook input priority 0; policy accept;
    udp dport $PORT drop
  }
}
NFT

cd "$(dirname "$0")"
SONDE_URL=$URL \
  SONDE_EXPECT_NAMESPACE=$NAMESPACE \
  SONDE_EXPECT_POD=server \
  SONDE_EXPECT_SADDR=10.211.47.2 \
  SONDE_EXPECT_DADDR=10.211.47.1 \
  SONDE_EXPECT_DPORT=$PORT \
  SONDE_SEND="ip netns exec $CLIENT bash -c 'for i in 1 2 3 4 5; do echo lost >/dev/udp/10.211.47.1/$PORT; done'" \
  node --test real-drop.test.mjs
