"""One whole round at the paper's size, phase by phase, on a GPU or in small on a CPU.

No document reports it yet. CIFAR-10, Dirichlet 0.1, the authors' settings (``recipe = "paper"``):
local training of all clients, distillation client by client, the surrogate's and the global model's
training on the union. Prints a table and writes JSON: seconds of each phase and of each client's
distillation, peak memory, a GPU's utilisation as nvidia-smi tells it, accuracies, the machine.

    python benchmarks/paper_round.py DATA.npz --weights FOLDER [--device cuda] [--clients 10]
        [--set key=value ...] [--out FILE.json]

DATA.npz is what ``unpack_images.py`` makes of a CIFAR-10 pack; FOLDER holds an autoencoder in
diffusers' layout. ``--set`` changes any setting: ``distill.precision=bfloat16``, or
``distill.iterations=2`` for a trial.
"""

import argparse
import json
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from distill_speed import machine
from inprocess import client_sets, local_update, quiet, scorer
from watching import PeakMemory, Utilisation

from feddgm_flwr.build import build_tools, first_state, workshop
from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.algorithm import apply_round
from feddgm_flwr.data.datasets import load, spec_of
from feddgm_flwr.events import Distilled, Event, Trained

CLASSES = "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck"


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the run's settings, ``--set`` last."""
    said: dict[str, Any] = {
        "recipe": "paper",
        "data.name": "npz",
        "data.root": str(options.data.resolve()),
        "data.class-names": CLASSES,
        "data.channels": 3,
        "data.image-size": 32,
        "data.flip": True,
        "data.alpha": 0.1,
        "prior.kind": "autoencoder",
        "prior.path": options.weights,
        "prior.image-scale": 2,
        "distill.engine": "serial",
        "global-model.names": "resnet18",
    }
    for pair in options.set:
        key, _, value = pair.partition("=")
        try:
            said[key] = json.loads(value)
        except json.JSONDecodeError:
            said[key] = value
    return said


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    config = RunConfig.from_run_config(settings(options))
    tools = build_tools(config, spec_of(config.data), options.device)
    state = first_state(config, tools, quiet)
    owned = client_sets(config.data, options.clients, config.seed)
    seconds: dict[str, float] = {}
    clients: list[dict[str, Any]] = []

    def hear(event: Event) -> None:
        if isinstance(event, Distilled):
            clients.append(asdict(event))
            print(f"client {event.partition_id}: {event.seconds:.1f} s", flush=True)
        if isinstance(event, Trained):
            seconds[f"training of {event.model}"] = event.seconds

    gpu = Utilisation(options.device) if Utilisation.known(options.device) else nullcontext()
    memory = PeakMemory(options.device)
    with workshop(config, tools) as shop, memory as peak, gpu as busy:
        began = time.perf_counter()
        updates = [local_update(config, tools, state, own, i) for i, own in enumerate(owned)]
        seconds["local training, all clients"] = time.perf_counter() - began
        began = time.perf_counter()
        state, _ = apply_round(state, updates, shop, emit=hear)
        seconds["the server's round"] = time.perf_counter() - began
        seconds["distillation, all clients"] = sum(c["seconds"] for c in clients)
    print("\n".join(["| phase | seconds |", "|---|---|"]))
    print("\n".join(f"| {phase} | {s:.1f} |" for phase, s in seconds.items()))
    scores = scorer(tools, load(config.data, "test"))(state).accuracy
    print(f"peak memory {peak.mb:.0f} MB; test accuracy {scores}")
    if busy:
        print(f"the GPU was busy {busy.percent:.0f} % of the time")
    if options.out:
        whole = {
            "machine": machine(options.device),
            "distill": asdict(config.distill),
            "seconds": seconds,
            "clients": clients,
            "peak_mb": peak.mb,
            "gpu_busy_percent": busy.percent if busy else None,
            "accuracy": scores,
        }
        options.out.write_text(json.dumps(whole, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
