#!/usr/bin/env bash
# Starts the whole system as a user would (`sonde up`), lets real-drop.sh make a real fault and watch the page, ends it.
. "$(dirname "$0")/../../scripts/lib.sh"
DIR=$(mktemp -d /tmp/sonde-browser.XXXXXX)
# The private PostgreSQL runs as another user, who must be able to pass.
chmod 755 "$DIR"
UP=
finish() {
  local code=$?
  if [ -n "$UP" ]; then
    kill -TERM "$UP" 2>/dev/null || true
    wait "$UP" || code=$?
  fi
  [ "$code" = 0 ] || { echo "--- sonde up said:"; tail -n 60 "$DIR/log"; }
  rm -rf "$DIR"
  exit "$code"
}
trap finish EXIT
port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])' 2>/dev/null || echo $((20000 + RANDOM)); }
HTTP=127.0.0.1:$(port)
cat >"$DIR/config.yaml" <<YAML
node: {name: browser-test}
pods: {netns: {include: ["bt$$-*"]}, include_host: false}
events: {unknown_netns: drop}
YAML
"$ROOT/target/release/sonde" up --data-dir "$DIR/data" --config "$DIR/config.yaml" \
  --http "$HTTP" --grpc "127.0.0.1:$(port)" --collector-http "127.0.0.1:$(port)" >"$DIR/log" 2>&1 &
UP=$!
for _ in $(seq 300); do
  if grep -qs "^sonde: ready" "$DIR/log"; then break; fi
  kill -0 "$UP" 2>/dev/null || exit 1
  sleep 0.2
done
grep -q '^sonde: ready' "$DIR/log" || { echo "sonde up did not get ready"; exit 1; }
SONDE_PREFIX="bt$$-" "$ROOT/tests/browser/real-drop.sh" "http://$HTTP"
