"""A client's local training against the plain torch loop that one would write.

Claim: docs, "Speed": at most 1.05 times its time; less where freed memory is kept. One epoch of the
surrogate, plain SGD, the same batches, one thread; the ways take turns, so that a busy machine
slows all of them. Prints the median seconds of each and the ratio to the plain loop.

    python benchmarks/client_speed.py [--repeats 7] [--device cuda]
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch
from stand_in import stand_in
from torch.nn.functional import cross_entropy

from feddgm_flwr.core.memory import keep_freed_memory
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.training import TrainConfig, train


@dataclass(frozen=True)
class Case:
    """A client's data and surrogate."""

    name: str
    channels: int
    side: int
    width: int
    images: int
    batch: int


CASES = (
    Case("mnist5k, width 32", 1, 28, 32, 512, 32),
    Case("CIFAR-10, width 128", 3, 32, 128, 256, 64),
)


def measure(case: Case, way: str, device: torch.device) -> float:
    """Return the seconds of an epoch, in a process that has done one already."""
    torch.set_num_threads(1)
    if "memory kept" in way:
        keep_freed_memory()
    _, model = stand_in(case.channels, case.side, width=case.width)
    model.to(device)
    shape = (case.images, case.channels, case.side, case.side)
    images = torch.rand(shape, generator=derive(0, "noise")).to(device)
    labels = (torch.arange(case.images) % 10).to(device)
    config = TrainConfig(epochs=1, lr=0.01, momentum=0.0, weight_decay=0.0, batch_size=case.batch)

    def plain() -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=config.lr)
        order = torch.randperm(case.images, generator=derive(0, "order")).to(device)
        for chosen in order.split(config.batch_size):
            optimizer.zero_grad()
            cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
        float(next(model.parameters()).detach().flatten()[0])  # waits for a GPU

    def ours() -> None:
        train(model, images, labels, config, rng=derive(0, "order"), compile="compiled" in way)

    epoch: Callable[[], None] = plain if way.startswith("plain") else ours
    epoch()
    began = time.perf_counter()
    epoch()
    return time.perf_counter() - began


def main() -> None:
    """Print one row a case and way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()
    ways = (
        *("plain loop", "train", "plain loop, memory kept", "train, memory kept"),
        "train, memory kept, compiled",
    )
    print("| client | way | s an epoch | of the plain loop |\n|---|---|---|---|")
    for case in CASES:
        took: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(options.repeats):
            print(f"{case.name}: {turn + 1} of {options.repeats}", file=sys.stderr)
            for way in ways:
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    took[way].append(pool.submit(measure, case, way, options.device).result())
        plain = statistics.median(took["plain loop"])
        for way in ways:
            median = statistics.median(took[way])
            print(f"| {case.name} | {way} | {median:.2f} | {median / plain:.2f} |")


if __name__ == "__main__":
    main()
