"""What recording as CUDA graphs is worth on a GPU: a client's training, and its distillation.

Claim: docs/speed.md. CIFAR-10's size, width 64 and 128: five epochs of 1,000 images in batches of
32, kernel by kernel and recorded; 30 iterations of matching on five classes, likewise. The ways
take turns in one process, after one turn that does not count; medians. GPU only.

    python benchmarks/recording.py [--repeats 3]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from unittest.mock import patch

import torch
from stand_in import stand_in

from feddgm_flwr.core.distillation.distill import Bench, DistillJob, distill_client
from feddgm_flwr.core.distillation.settings import DistillConfig
from feddgm_flwr.core.params import params_of
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.training import TrainConfig, train
from feddgm_flwr.priors.pixel import PixelPrior

GPU = torch.device("cuda")
WIDTHS = (64, 128)
IMAGES = 1_000
CLASSES = 5


def training(width: int, *, recorded: bool) -> Callable[[], None]:
    """Return a client's training."""
    _, model = stand_in(3, 32, width=width)
    model.to(GPU)
    images = torch.rand((IMAGES, 3, 32, 32), generator=derive(0, "noise")).to(GPU)
    labels = (torch.arange(IMAGES) % CLASSES).to(GPU)
    config = TrainConfig(epochs=5, lr=0.01, batch_size=32)

    def run() -> None:
        train(model, images, labels, config, rng=derive(0, "order"), compile=recorded)

    return run


def distillation(width: int, *, recorded: bool) -> Callable[[], None]:
    """Return a client's distillation, by the recipe but for its length."""
    spec, student = stand_in(3, 32, width=width)
    start = params_of(student)
    rng = derive(0, "client")
    target = {k: p + 0.02 * torch.randn(p.shape, generator=rng) for k, p in start.items()}
    config = DistillConfig(iterations=30)
    bench = Bench(student, PixelPrior(spec), config, spec, 64, GPU)
    job = DistillJob(0, 1, 0, start, target, dict.fromkeys(range(CLASSES), 3), None)

    def run() -> None:
        # Nothing is recorded where iterations are said to differ.
        name = "feddgm_flwr.core.distillation.distill.sees_all"
        with patch(name, lambda *_: recorded):
            distill_client(job, bench)

    return run


def seconds(run: Callable[[], None]) -> float:
    """Return how long ``run`` took, on the clock."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    """Print one row a piece of work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    print(
        "| work | width | kernel by kernel, s | recorded, s | times as fast |\n" + "|---" * 5 + "|"
    )
    for name, make in (("a client's training", training), ("its distillation", distillation)):
        for width in WIDTHS:
            ways = [make(width, recorded=recorded) for recorded in (False, True)]
            took: list[list[float]] = [[], []]
            for turn in range(options.repeats + 1):
                for way, run in enumerate(ways):
                    spent = seconds(run)
                    if turn:
                        took[way].append(spent)
            plain, recorded = map(statistics.median, took)
            print(f"| {name} | {width} | {plain:.2f} | {recorded:.2f} | {plain / recorded:.1f} |")


if __name__ == "__main__":
    main()
