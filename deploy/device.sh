#!/usr/bin/env bash
# The SuperNode of one device, known to the server by its key. It runs in the foreground;
# systemd/feddgm-device.service and compose.yaml keep it running.
#
#   deploy/device.sh
#
# Told by its environment (systemd/device.env has them all):
#   FEDDGM_SUPERLINK     server.example.org:9092, a name that its certificate is for
#   FEDDGM_NODE_CONFIG   partition-id=3 num-partitions=0 data-dir="/data/mine" (docs/data.md)
#   FEDDGM_CA            the authority's certificate                       /etc/feddgm/ca.crt
#   FEDDGM_KEY           this device's private key                         /etc/feddgm/node.key
#   FEDDGM_STATE         Flower's files; made 0700                         /var/lib/feddgm/device
#   FEDDGM_WARM          yes: torch is imported once, not for every message; keeps 0.6 GB
#   FEDDGM_CLIENTAPPIO   address for the device's own processes            127.0.0.1:9094
set -euo pipefail

for name in FEDDGM_SUPERLINK FEDDGM_NODE_CONFIG; do
  [[ -n ${!name:-} ]] || {
    echo "$name must be set (deploy/systemd/device.env shows how)" >&2
    exit 2
  }
done
CA=${FEDDGM_CA:-/etc/feddgm/ca.crt}
KEY=${FEDDGM_KEY:-/etc/feddgm/node.key}
STATE=${FEDDGM_STATE:-/var/lib/feddgm/device}
CLIENTAPPIO=${FEDDGM_CLIENTAPPIO:-127.0.0.1:9094}
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

absolute FEDDGM_CA "$CA"
absolute FEDDGM_KEY "$KEY"
absolute FEDDGM_STATE "$STATE"
for_this_side FEDDGM_CLIENTAPPIO "$CLIENTAPPIO"
check_files "$CA" "$KEY"

private_state "$STATE"
LISTEN=(--clientappio-api-address "$CLIENTAPPIO")
! one_port || LISTEN=(--host "${CLIENTAPPIO%:*}" --port "${CLIENTAPPIO##*:}")
[[ ${FEDDGM_WARM:-} != yes ]] || warm "$STATE/warm"
exec flower-supernode \
  --superlink "$FEDDGM_SUPERLINK" --root-certificates "$CA" \
  --auth-supernode-private-key "$KEY" \
  "${LISTEN[@]}" \
  --node-config "$FEDDGM_NODE_CONFIG"
