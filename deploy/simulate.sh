#!/usr/bin/env bash
# One simulated run on this machine, with a SuperLink of its own that ends with it.
#
#   deploy/simulate.sh WORKDIR CLIENTS [-c conf/x.toml] [-c 'key=value ...']
#
# Logs and Flower's state go to WORKDIR; set out-dir for the run folder. Exits with 0 only if the
# run completed. CLIENT_CPUS (1) and CLIENT_GPUS (0) are what each simulated client takes;
# START_WAIT_S (180) is how long a server may take to answer its first call. RAY_DASHBOARD=8265 shows
# Ray's own page at that port (it needs: pip install 'ray[default]', of the version that is installed).
set -euo pipefail

if (($# < 2)); then
  sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
WORK=$(mkdir -p "$1" && cd "$1" && pwd)
CLIENTS=$2
shift 2
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

python "$APP/deploy/merge_config.py" "$WORK/run.toml" "$@"

read -r CONTROL APPIO GCS RAY_CLIENT <<<"$(free_ports 4)"
cat >"$FLWR_HOME/config.toml" <<TOML
[superlink]
default = "feddgm"

[superlink.feddgm]
address = "127.0.0.1:$CONTROL"
insecure = true
TOML

# Ray gives its own servers 30 s to start, a fixed time: too short for a disk that has not read them
# yet or a machine that is busy. So it is started here, where a second try costs no run.
# Ray hands the path of Python to a shell as it is: one with a blank gets another name.
launch_ray() {
  local python page=(--include-dashboard=false)
  if [[ -n ${RAY_DASHBOARD:-} ]]; then
    page=(--include-dashboard=true --dashboard-host=127.0.0.1 --dashboard-port="$RAY_DASHBOARD")
  fi
  python=$(python -c 'import sys; print(sys.executable)')
  if [[ $python == *" "* ]]; then
    ln -sfn "$(dirname "$(dirname "$python")")" "$RAY_TMPDIR/python"
    python=$RAY_TMPDIR/python/bin/$(basename "$python")
  fi
  start "$WORK/ray.log" "$python" -m ray.scripts.scripts start --head --block --node-ip-address=127.0.0.1 --port="$GCS" \
    --ray-client-server-port="$RAY_CLIENT" "${page[@]}" --temp-dir="$RAY_TMPDIR/ray"
  RAY_PID=$!
}

wait_for_ray() {
  local attempt
  for attempt in 1 2 3; do
    ((attempt == 1)) || launch_ray
    while kill -0 "$RAY_PID" 2>/dev/null; do
      ! grep -q "now block forever" "$WORK/ray.log" || return 0
      sleep 0.2
    done
    echo "Ray did not start (try $attempt of 3)" >&2
  done
  tail -n 40 "$WORK/ray.log" "$RAY_TMPDIR"/ray/session_latest/logs/{gcs_server,raylet}.* >&2 || true
  return 1
}

cd "$WORK/cwd"
OWN_RAY=
if [[ -z ${RAY_ADDRESS:-} ]]; then
  OWN_RAY=yes
  export RAY_ADDRESS=127.0.0.1:$GCS
  launch_ray
fi
start "$WORK/superlink.log" superlink_at "" "127.0.0.1:$CONTROL" "127.0.0.1:$APPIO" --insecure --simulation
wait_for "the SuperLink" answered list feddgm
[[ -z $OWN_RAY ]] || wait_for_ray

run_and_follow --federation-config \
  "num-supernodes=$CLIENTS client-resources-num-cpus=${CLIENT_CPUS:-1} client-resources-num-gpus=${CLIENT_GPUS:-0.0}"
