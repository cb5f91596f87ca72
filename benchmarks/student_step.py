"""One student step and its way back, by autograd and in closed form, one core.

Claim: docs, "Speed", "Why it is faster". Milliseconds of the detached gradient of one step, the
median of several after two that warm up, each way in a process of its own, one after the other.
"made again" is a step under a memory budget.

    python benchmarks/student_step.py [--repeats 7] [--piece-mb N] [--chunk-mb N]

The last two set the sizes of ``convnet.PIECE_BYTES`` and ``CHUNK_BYTES``. Huge pages are tried by
GLIBC_TUNABLES=glibc.malloc.hugetlb=1 in the environment.
"""

import argparse
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch
from stand_in import stand_in
from torch.nn.functional import one_hot

from feddgm_flwr.core.distillation import convnet
from feddgm_flwr.core.distillation.convnet import ConvNetStudent
from feddgm_flwr.core.distillation.student import AutogradStudent
from feddgm_flwr.core.memory import keep_freed_memory
from feddgm_flwr.core.params import params_of


@dataclass(frozen=True)
class Size:
    """What a step sees."""

    name: str
    channels: int
    side: int
    width: int
    depth: int
    images: int


SIZES = (
    Size("12 digits", 1, 28, 32, 3, 12),
    Size("100 CIFAR images, depth 3", 3, 32, 128, 3, 100),
    Size("100 CIFAR images, depth 5", 3, 32, 128, 5, 100),
    Size("10 images of 128 pixels, depth 5", 3, 128, 128, 5, 10),
)
WAYS = ("autograd", "autograd, memory kept", "closed form", "closed form, made again")


def measure(size: Size, way: str, options: argparse.Namespace) -> float:
    """Return a step's milliseconds."""
    torch.set_num_threads(1)
    if way != "autograd":
        keep_freed_memory()  # as the engine does
    convnet.PIECE_BYTES = round((options.piece_mb or convnet.PIECE_BYTES / 2**20) * 2**20)
    convnet.CHUNK_BYTES = round((options.chunk_mb or convnet.CHUNK_BYTES / 2**20) * 2**20)
    _, net = stand_in(size.channels, size.side, width=size.width, depth=size.depth)
    student = (AutogradStudent if way.startswith("autograd") else ConvNetStudent)(net)
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(size.images, size.channels, size.side, size.side, generator=rng)
    targets = one_hot(torch.arange(size.images) % 10, 10).float()
    params = params_of(net)
    direction = [torch.randn(p.shape, generator=rng) for p in params.values()]
    times = []
    for _ in range(options.repeats + 2):
        began = time.perf_counter()
        _, trace = student.step(params, images, targets, keep=way != WAYS[-1])
        trace.pull(direction, through=False)
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[2:])


def main() -> None:
    """Print one row a size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--piece-mb", type=float)
    parser.add_argument("--chunk-mb", type=float)
    options = parser.parse_args()
    print(f"| ms a step | {' | '.join(WAYS)} |\n|---|---|---|---|---|")
    for size in SIZES:
        took = []
        for way in WAYS:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                took.append(pool.submit(measure, size, way, options).result())
        print(f"| {size.name} | {' | '.join(f'{ms:.1f}' for ms in took)} |", flush=True)


if __name__ == "__main__":
    main()
