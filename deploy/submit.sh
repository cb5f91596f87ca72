#!/usr/bin/env bash
# Submit a run to a SuperLink that is up, and follow its log to the end.
#
#   deploy/submit.sh WORKDIR HOST:PORT CA.crt [-c conf/x.toml] [-c 'key=value ...']
#
# HOST:PORT is the Control API, most often this end of a tunnel (docs/deploy.md). The connection is
# kept in WORKDIR. Exits with 0 only if the run completed; `flwr run --stream` alone does not tell.
set -euo pipefail

if (($# < 3)); then
  sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
WORK=$(mkdir -p "$1" && cd "$1" && pwd)
ADDRESS=$2
CA=$(cd "$(dirname "$3")" && pwd)/$(basename "$3")
shift 3
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

python "$APP/deploy/merge_config.py" "$WORK/run.toml" "$@"
connect "$ADDRESS" "$CA"
run_and_follow
