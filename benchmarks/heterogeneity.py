"""FedDGM against FedAvg on mnist5k, 10 clients, Dirichlet(0.1): mean and spread over seeds.

Claim: README, "Results". Prints, by round, clean test accuracy of FedDGM's surrogate, of FedAvg at
the best of a grid of learning rates and momenta, of FedAvg started from the same prior-taught
surrogate, and the generator-only control. Every run has the same clients, partitions, rounds,
local epochs and bytes on the wire. No Flower start-up (see inprocess.py).

    python benchmarks/heterogeneity.py --seeds 0 1 2 --out heterogeneity.json

About 15 minutes on 2 cores.
"""

import argparse
import json
import math
import multiprocessing
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from inprocess import quiet, run, scorer

from feddgm_flwr.build import build_tools, control_state
from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.start import fresh_state
from feddgm_flwr.data.datasets import load, spec_of

CLIENTS = 10
GRIDS = {
    "random": [(0.05, 0.0), (0.1, 0.0), (0.2, 0.0), (0.02, 0.9), (0.05, 0.9)],
    "prior": [(0.02, 0.0), (0.05, 0.0), (0.1, 0.0), (0.2, 0.0)],
}
"""FedAvg's start -> the client's (learning rate, momentum) that are tried."""

Curves = list[list[float]]
"""Accuracy by seed and round."""


def one_run(settings: dict[str, Any]) -> list[float]:
    """Return the surrogate's accuracy after every round; NaN where training diverged."""
    torch.set_num_threads(1)
    config = RunConfig.from_run_config({**settings, "distill.engine": "serial"})
    try:
        return [r.accuracy["surrogate"] for r in run(config, CLIENTS)]
    except FloatingPointError:
        return [math.nan] * config.num_server_rounds


def control(settings: dict[str, Any]) -> list[float]:
    """Return the accuracy of the surrogate that the prior alone taught."""
    torch.set_num_threads(1)
    config = RunConfig.from_run_config({**settings, "distill.engine": "serial"})
    tools = build_tools(config, spec_of(config.data))
    taught = control_state(config, tools, fresh_state(tools.learners, seed=config.seed), quiet)
    return [scorer(tools, load(config.data, "test"))(taught).accuracy["surrogate"]]


def best_fedavg(
    start: str, grid: dict[tuple[str, float, float], Curves]
) -> tuple[dict[str, float], Curves]:
    """Return the client settings with the best mean over all rounds and seeds."""
    tried = {key: rows for key, rows in grid.items() if key[0] == start}
    best = max(tried, key=lambda key: _rank(tried[key]))
    return {"client.lr": best[1], "client.momentum": best[2]}, tried[best]


def _rank(rows: Curves) -> float:
    mean = statistics.mean(map(statistics.mean, rows))
    return -1.0 if math.isnan(mean) else mean


def line(rows: Curves) -> str:
    """Return mean and standard deviation by round, in per cent."""
    columns = list(zip(*rows, strict=True))
    return "  ".join(f"{_mean(c):5.1f} +- {_spread(c):3.1f}" for c in columns)


def _mean(values: Sequence[float]) -> float:
    return 100 * statistics.mean(values)


def _spread(values: Sequence[float]) -> float:
    return 100 * statistics.stdev(values) if len(values) > 1 else 0.0


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alpha", type=float, default=0.1)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    settings: dict[str, Any] = {"num-server-rounds": chosen.rounds, "data.alpha": chosen.alpha}

    keys = [(start, lr, m) for start, pairs in GRIDS.items() for lr, m in pairs]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:

        def over_seeds(task: Callable[..., list[float]], said: dict[str, Any]) -> list[Any]:
            return [pool.submit(task, {**settings, **said, "seed": s}) for s in chosen.seeds]

        feddgm = over_seeds(one_run, {})
        alone = over_seeds(control, {})
        averaged = {
            (start, lr, m): over_seeds(
                one_run,
                {
                    "method": "fedavg",
                    "start.weights": start,
                    "client.lr": lr,
                    "client.momentum": m,
                },
            )
            for start, lr, m in keys
        }
        ours = [f.result() for f in feddgm]
        print(f"feddgm {line(ours)}", flush=True)
        controls = [f.result()[0] for f in alone]
        grid: dict[tuple[str, float, float], Curves] = {}
        for key, futures in averaged.items():
            grid[key] = [f.result() for f in futures]
            print(f"fedavg start, lr, momentum {key}: {line(grid[key])}", flush=True)
    best, fedavg = best_fedavg("random", grid)
    best_prior, taught = best_fedavg("prior", grid)

    print(f"\nmnist5k, {CLIENTS} clients, Dirichlet({chosen.alpha}), seeds {chosen.seeds}")
    print("accuracy by round, %, mean +- standard deviation")
    print(f"feddgm               {line(ours)}")
    print(f"fedavg               {line(fedavg)}   {best}")
    print(f"fedavg, prior start  {line(taught)}   {best_prior}")
    print(f"generator only       {_mean(controls):5.1f} +- {_spread(controls):3.1f}")
    lead = [a - b for x, y in zip(ours, fedavg, strict=True) for a, b in zip(x, y, strict=True)]
    early = [x[r] - y[r] for x, y in zip(ours, fedavg, strict=True) for r in range(3)]
    print(f"lead over fedavg: {_mean(early):.1f} points on average over rounds 1 to 3; ", end="")
    print(f"smallest in any round and seed {100 * min(lead):.1f}")
    if chosen.out:
        record = {
            "settings": settings,
            "seeds": chosen.seeds,
            "feddgm": ours,
            "fedavg": {"client": best, "accuracy": fedavg},
            "fedavg_prior_start": {"client": best_prior, "accuracy": taught},
            "generator_only": controls,
        }
        chosen.out.write_text(json.dumps(record, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
