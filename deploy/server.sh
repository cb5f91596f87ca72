#!/usr/bin/env bash
# The SuperLink of a federation over gRPC with TLS and SuperNode keys. It runs in the foreground;
# systemd/feddgm-server.service and compose.yaml keep it running.
#
#   deploy/server.sh
#
# Told by its environment (systemd/server.env has them all):
#   FEDDGM_CREDENTIALS  folder with ca.crt, server.pem, server.key          /etc/feddgm
#   FEDDGM_STATE        database, run folders, Flower's files; made 0700    /var/lib/feddgm/server
#   FEDDGM_FLEET        address for devices                                 0.0.0.0:9092
#   FEDDGM_CONTROL      address for commands, which asks for no key         127.0.0.1:9093
#   FEDDGM_SERVERAPPIO  address for the server's own processes              127.0.0.1:9091
set -euo pipefail

CREDENTIALS=${FEDDGM_CREDENTIALS:-/etc/feddgm}
STATE=${FEDDGM_STATE:-/var/lib/feddgm/server}
FLEET=${FEDDGM_FLEET:-0.0.0.0:9092}
CONTROL=${FEDDGM_CONTROL:-127.0.0.1:9093}
SERVERAPPIO=${FEDDGM_SERVERAPPIO:-127.0.0.1:9091}
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

absolute FEDDGM_CREDENTIALS "$CREDENTIALS"
absolute FEDDGM_STATE "$STATE"
for_this_side FEDDGM_CONTROL "$CONTROL"
for_this_side FEDDGM_SERVERAPPIO "$SERVERAPPIO"
python - <<'PY'
import importlib.util, sys
needed = ("diffusers", "matplotlib", "safetensors", "torchvision", "scipy")
missing = [name for name in needed if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"the server's half is not installed ({', '.join(missing)}); pip install '.[server]'")
PY
check_files "$CREDENTIALS/ca.crt" "$CREDENTIALS/server.pem" "$CREDENTIALS/server.key"

private_state "$STATE"
superlink_at "$FLEET" "$CONTROL" "$SERVERAPPIO" \
  --ssl-ca-certfile "$CREDENTIALS/ca.crt" --ssl-certfile "$CREDENTIALS/server.pem" \
  --ssl-keyfile "$CREDENTIALS/server.key" --enable-supernode-auth \
  --database "$STATE/state.db"
