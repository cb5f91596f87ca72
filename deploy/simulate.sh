#!/usr/bin/env bash
# One simulated run on this machine, with a SuperLink of its own that ends with it.
#
#   deploy/simulate.sh WORKDIR CLIENTS [-c conf/x.toml] [-c 'key=value ...']
#
# Logs and Flower's state go to WORKDIR; set out-dir for the run folder. Exits with 0 only if the
# run completed. CLIENT_CPUS (1) and CLIENT_GPUS (0) are what each simulated client takes.
set -euo pipefail

if (($# < 2)); then
  sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
WORK=$(mkdir -p "$1" && cd "$1" && pwd)
CLIENTS=$2
shift 2
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

python "$APP/deploy/merge_config.py" "$WORK/run.toml" "$@"

read -r CONTROL APPIO <<<"$(free_ports 2)"
cat >"$FLWR_HOME/config.toml" <<TOML
[superlink]
default = "feddgm"

[superlink.feddgm]
address = "127.0.0.1:$CONTROL"
insecure = true
TOML

# Ray gives its own servers 30 s to start, which is short for a disk that has not read them yet.
cat "$(python -c 'import importlib.util as u; print(u.find_spec("ray").submodule_search_locations[0])')"/core/src/ray/{gcs/gcs_server,raylet/raylet} >/dev/null

cd "$WORK/cwd"
start "$WORK/superlink.log" flower-superlink --insecure --simulation \
  --control-api-address "127.0.0.1:$CONTROL" --serverappio-api-address "127.0.0.1:$APPIO"
wait_for 60 "the SuperLink" flwr list feddgm --format json

run_and_follow --federation-config \
  "num-supernodes=$CLIENTS client-resources-num-cpus=${CLIENT_CPUS:-1} client-resources-num-gpus=${CLIENT_GPUS:-0.0}"
