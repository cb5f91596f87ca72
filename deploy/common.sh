# shellcheck shell=bash
# Shared by simulate.sh, local.sh and submit.sh; sourced, not run.
# Keeps what environment.sh sets up to the folder WORK, follows runs, and stops every
# process that was started with `start` when the script ends, however it ends.

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

export FLWR_HOME=$WORK/flwr-home RAY_USAGE_STATS_ENABLED=0
# What runs on this machine is not to be looked for behind a proxy.
export NO_PROXY="127.0.0.1,localhost,::1${NO_PROXY:+,$NO_PROXY}"
export no_proxy=$NO_PROXY
# Seconds that a server may take to answer its first call; a busy machine needs more.
START_WAIT_S=${START_WAIT_S:-180}
# Ray's own folder, apart from other runs; not in WORK, as its sockets need a short path.
RAY_TMPDIR=$(mktemp -d) || {
  echo "a temporary folder is needed; set TMPDIR to one that can be written" >&2
  exit 1
}
export RAY_TMPDIR
mkdir -p "$FLWR_HOME" "$WORK/cwd"

GROUPS_STARTED=()

# start LOG COMMAND...: in the background, as the leader of its own process group (which job control
# gives it, also where there is no setsid).
start() {
  local log=$1
  shift
  set -m
  "$@" >"$log" 2>&1 </dev/null &
  GROUPS_STARTED+=("$!")
  set +m
}

# Whole groups are stopped, newest first: a SuperLink's own children would outlive it.
stop_all() {
  local i
  for ((i = ${#GROUPS_STARTED[@]} - 1; i >= 0; i--)); do
    kill -TERM -- "-${GROUPS_STARTED[$i]}" 2>/dev/null || true
  done
  for _ in $(seq 50); do
    still_running || return 0
    sleep 0.2
  done
  for ((i = 0; i < ${#GROUPS_STARTED[@]}; i++)); do
    kill -KILL -- "-${GROUPS_STARTED[$i]}" 2>/dev/null || true
  done
}

still_running() {
  local i
  for ((i = 0; i < ${#GROUPS_STARTED[@]}; i++)); do
    kill -0 -- "-${GROUPS_STARTED[$i]}" 2>/dev/null && return 0
  done
  return 1
}

clean_up() {
  stop_all
  rm -rf "$RAY_TMPDIR"
}

trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# free_ports N: that many ports nobody listens on.
free_ports() {
  python - "$1" <<'PY'
import socket, sys
sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
for s in sockets:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))
PY
}

# ask ARGUMENTS...: flwr, cut short: a call that meets a server in the middle of its start may never
# be answered. (Not everywhere is there a `timeout`.)
ask() {
  python - "$@" <<'PY'
import subprocess, sys
try:
    sys.exit(subprocess.run(["flwr", *sys.argv[1:]], timeout=30, stdin=subprocess.DEVNULL).returncode)
except subprocess.TimeoutExpired:
    sys.exit(124)
PY
}

# wait_for WHAT COMMAND...: until the command succeeds, at most START_WAIT_S seconds.
wait_for() {
  local what=$1 end
  shift
  end=$((SECONDS + START_WAIT_S))
  until "$@" >/dev/null 2>&1; do
    if ((SECONDS >= end)); then
      echo "$what was not ready after $START_WAIT_S s (START_WAIT_S); its log is in $WORK" >&2
      exit 1
    fi
    sleep 0.5
  done
}

# json EXPRESSION: of the JSON on standard input, as `d`.
json() {
  python -c "import json, sys; d = json.load(sys.stdin); print($1)"
}

# answered ARGUMENTS...: whether flwr did what it was asked; of some releases the exit code does not tell.
answered() {
  [[ $(ask "$@" --format json 2>/dev/null | json 'd["success"]') == True ]]
}

# connect ADDRESS CA: what `flwr` calls `feddgm` is the SuperLink there.
connect() {
  cat >"$FLWR_HOME/config.toml" <<TOML
[superlink]
default = "feddgm"

[superlink.feddgm]
address = "$1"
root-certificates = "$2"
TOML
}

# run_and_follow OPTIONS...: run the app with $WORK/run.toml on connection `feddgm` and follow its
# log; the exit code is the run's (`flwr run --stream` alone exits 0 even when a run fails).
run_and_follow() {
  local reply run status wait
  # From an empty folder: simulated clients would import modules lying in the current one.
  cd "$WORK/cwd"
  reply=$(flwr run "$APP" feddgm --format json -c "$WORK/run.toml" "$@") || true
  if ! run=$(json 'd["run-id"]' <<<"$reply" 2>/dev/null); then
    echo "the run was refused: $reply" >&2
    return 1
  fi
  echo "run $run"
  flwr log "$run" feddgm --stream || true
  status=unknown
  wait=2
  until [[ $status == finished:* ]]; do
    if status=$(ask list feddgm --run-id "$run" --format json | json 'd["runs"][0]["status"]' 2>/dev/null); then
      wait=2
    else
      ((wait > 2)) ||
        echo "the SuperLink says nothing of run $run; asking on until it does (Ctrl-C ends that)" >&2
      wait=$((wait < 16 ? 2 * wait : 16)) # each question starts a Python
    fi
    [[ $status == finished:* ]] || sleep "$wait"
  done
  echo "run $run $status"
  [[ $status == finished:completed ]]
}
