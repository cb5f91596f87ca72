# shellcheck shell=bash
# Shared by server.sh, device.sh and common.sh; sourced, not run.
# Finds Flower, keeps it quiet and off the network, and what it writes private.

APP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if ! command -v flwr >/dev/null; then
  PATH=$APP/.venv/bin:$PATH
fi
command -v flwr >/dev/null || {
  echo "flwr is not installed; run make install, or pip install the project, first" >&2
  exit 1
}

export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 PYTHONUNBUFFERED=1
# Run folders and databases are for their owner alone: they hold clients' parameters and keys.
umask 077

# check_files FILE...: keys that no one else may read, certificates that are valid now.
check_files() {
  python "$APP/deploy/credentials.py" check "$@" || exit 1
}

# absolute NAME PATH: these scripts change to a folder of their own.
absolute() {
  [[ $2 == /* ]] || {
    echo "$1 must be a path from / on, got '$2'" >&2
    exit 2
  }
}

# for_this_side NAME ADDRESS: whoever reaches it may register keys and submit code, or take messages.
for_this_side() {
  # As many spellings of every address as there are, so that no list of them is whole.
  python - "$2" <<'PYTHON' || {
import ipaddress, re, sys

host = sys.argv[1].rpartition(":")[0].strip("[]")
try:
    address = ipaddress.ip_address(host)
except ValueError:
    # A name, and none of what some programs take for an address.
    sys.exit(re.fullmatch(r"[\d.*]*|0x.*|.*:.*", host) is not None)
mapped = getattr(address, "ipv4_mapped", None) or address
sys.exit(address.is_unspecified or mapped.is_unspecified)
PYTHON
    echo "$1 must not be every address, got '$2': others would reach it; bind it to 127.0.0.1" \
      "or to an address of a management network" >&2
    exit 2
  }
}

# private_state STATE: a folder that no one else may enter, and in it an empty one to run from: an
# app would import modules that lie in the current folder.
private_state() {
  mkdir -p "$1/cwd"
  chmod 700 "$1"
  export FLWR_HOME=$1/flwr-home
  mkdir -p "$FLWR_HOME"
  cd "$1/cwd" || exit 1
}

# one_port: whether this Flower serves all at one port, over HTTP (docs/deploy.md, "Flower versions").
one_port() {
  python -c 'from importlib.metadata import version
raise SystemExit(tuple(map(int, version("flwr").split(".")[:2])) < (1, 41))'
}

# superlink_at FLEET CONTROL SERVERAPPIO OPTIONS...: a SuperLink that listens there, in this shell's place.
superlink_at() {
  local at=(--control-api-address "$2" --serverappio-api-address "$3")
  [[ -z $1 ]] || at+=(--fleet-api-address "$1")
  if one_port; then
    local all=${1:-$2}
    echo "this Flower serves devices and commands at one address, $all; commands ask for no key" >&2
    at=(--host "${all%:*}" --port "${all##*:}" --disable-runtime-dependency-installation)
  fi
  exec python "$APP/deploy/superlink.py" "$(command -v flower-superlink)" "${at[@]}" "${@:4}"
}

# warm FOLDER: one Python that has imported torch answers each message by a fork (warm.py).
warm() {
  rm -f "$1/flwr-clientapp"
  python "$APP/deploy/warm.py" "$1" &
  until [[ -x $1/flwr-clientapp ]]; do
    kill -0 $! 2>/dev/null || {
      echo "the warm process did not start" >&2
      exit 1
    }
    sleep 0.2
  done
  export PATH=$1:$PATH
}
