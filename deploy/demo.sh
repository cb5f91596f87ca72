#!/usr/bin/env bash
# FedDGM, then FedAvg, on the same ten clients of real, very skewed digits; then both in one plot.
#
#   deploy/demo.sh FOLDER [-c 'seed=1' ...]
#
# Needs the project installed (`make demo` sees to it). FOLDER/feddgm and FOLDER/fedavg become run
# folders (see README, "Your own run"); a demo that was cut off goes on where it stopped.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
FOLDER=$(mkdir -p "$1" && cd "$1" && pwd)
shift

for method in feddgm fedavg; do
  # The client's learning rate at which FedAvg is best here (benchmarks/results/mnist5k/tuned.json).
  tuned=""
  [[ $method == fedavg ]] && tuned="client.lr=0.1"
  resume=false
  [[ -f $FOLDER/$method/checkpoint.feddgm || -f $FOLDER/$method/checkpoint.previous.feddgm ]] &&
    resume=true
  echo "== $method, 10 clients, Dirichlet(0.1), 5 rounds"
  bash "$HERE/deploy/simulate.sh" "$FOLDER/flower-$method" 10 -c "$HERE/conf/demo.toml" \
    -c "method=\"$method\" out-dir=\"$FOLDER/$method\" resume=$resume $tuned" "$@"
done

echo "== test accuracy by round"
python -m feddgm_flwr.monitoring.compare "$FOLDER/feddgm/result.json" "$FOLDER/fedavg/result.json" \
  --out "$FOLDER/accuracy.png"
echo "pictures: $FOLDER/accuracy.png, $FOLDER/feddgm/*.png and $FOLDER/feddgm/images/"
if command -v flwr-dashboard >/dev/null; then
  flwr-dashboard "$FOLDER" --run feddgm --report "$FOLDER/report.html"
  echo "both runs in a browser: $(command -v flwr-dashboard) $FOLDER"
fi
