#!/usr/bin/env bash
# A real deployment on this machine: one SuperLink and some SuperNodes that speak gRPC under TLS,
# each SuperNode admitted by its own key. The same app, unchanged.
#
#   deploy/local.sh WORKDIR NODES [-c conf/x.toml] [-c 'key=value ...']
#
# Logs, credentials and Flower's state go to WORKDIR; set out-dir for the run folder. Exits with 0
# only if the run completed. NODE_CONFIG is added to every SuperNode's --node-config; "{i}" in it
# is the node's number. START_WAIT_S (180) is how long a server may take to answer its first call.
set -euo pipefail

if (($# < 2)); then
  sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
WORK=$(mkdir -p "$1" && cd "$1" && pwd)
NODES=$2
shift 2
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

python "$APP/deploy/merge_config.py" "$WORK/run.toml" "$@"

KEYS=$WORK/credentials
# New keys each time; a database that knows old ones is of no use.
rm -rf "$KEYS" "$WORK/server"
python "$APP/deploy/credentials.py" trial "$KEYS" "$NODES"

read -r -a PORTS <<<"$(free_ports $((3 + NODES)))"
! one_port || PORTS[0]=${PORTS[1]}
connect "127.0.0.1:${PORTS[0]}" "$KEYS/ca.crt"
FEDDGM_CREDENTIALS=$KEYS FEDDGM_STATE=$WORK/server \
  FEDDGM_CONTROL=127.0.0.1:${PORTS[0]} FEDDGM_FLEET=127.0.0.1:${PORTS[1]} \
  FEDDGM_SERVERAPPIO=127.0.0.1:${PORTS[2]} \
  start "$WORK/superlink.log" bash "$APP/deploy/server.sh"
wait_for "the SuperLink" answered supernode list feddgm

for ((i = 0; i < NODES; i++)); do
  # A SuperNode whose key is unknown gives up at once, so its key goes first.
  flwr supernode register "$KEYS/node-$i.pub" feddgm --format json >"$WORK/node-$i.json"
  extra=${NODE_CONFIG:-}
  FEDDGM_SUPERLINK=127.0.0.1:${PORTS[1]} FEDDGM_CA=$KEYS/ca.crt FEDDGM_KEY=$KEYS/node-$i \
    FEDDGM_STATE=$WORK/node-$i FEDDGM_CLIENTAPPIO=127.0.0.1:${PORTS[$((3 + i))]} \
    FEDDGM_NODE_CONFIG="partition-id=$i num-partitions=$NODES ${extra//\{i\}/$i}" \
    start "$WORK/node-$i.log" bash "$APP/deploy/device.sh"
done

all_online() {
  local online
  online=$(ask supernode list feddgm --format json | grep -c '"online"')
  ((online >= NODES))
}
wait_for "a SuperNode" all_online

run_and_follow
