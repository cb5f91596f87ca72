"""Whether clients should be distilled together: grouped convolutions and vmap against a loop.

Claim: docs/speed.md. All clients of a round train students of one architecture, so their steps
could be one grouped convolution, or one vmapped step. Prints milliseconds of a student's gradient
for several clients: one after the other in closed form (what the engine does), one after the other
by autograd, vmapped autograd, and of the second convolution alone, in a loop and grouped.

    python benchmarks/grouped_clients.py [--clients 4] [--device cuda] [--threads 1]
"""

import argparse
import time
from collections.abc import Callable

import torch
from stand_in import stand_in
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.functional import conv2d, cross_entropy

from feddgm_flwr.core.distillation.convnet import ConvNetStudent
from feddgm_flwr.core.params import Params, params_of
from feddgm_flwr.core.seeding import derive

SIZES = {"digits": (1, 28, 32, 12), "cifar": (3, 32, 128, 20)}
"""Name -> channels, side, width, images a client."""


def shortest(work: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """Return the least milliseconds of several runs, after one that warms up."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return 1000 * min(times[1:])


def compare(name: str, clients: int, device: torch.device) -> str:
    """Return a table row."""
    channels, side, width, n = SIZES[name]
    rng = derive(0, "grouped-clients")
    _, net = stand_in(channels, side, width=width)
    net.to(device)
    params = params_of(net)
    images = torch.rand(clients, n, channels, side, side, generator=rng).to(device)
    labels = (torch.arange(n) % 10).to(device)
    targets = torch.nn.functional.one_hot(labels, 10).float()
    student = ConvNetStudent(net)

    def loss(p: Params, x: Tensor) -> Tensor:
        return cross_entropy(functional_call(net, p, (x,)), labels)

    stacked = {k: p.expand(clients, *p.shape).clone() for k, p in params.items()}
    maps = torch.rand(clients, n, width, side // 2, side // 2, generator=rng).to(device)
    maps = maps.flatten(0, 1).to(memory_format=torch.channels_last).view(maps.shape)
    kernel = torch.rand(width, width, 3, 3, generator=rng).to(device)
    kernel = kernel.to(memory_format=torch.channels_last)
    side_by_side = maps.transpose(0, 1).flatten(1, 2).to(memory_format=torch.channels_last)
    kernels = kernel.repeat(clients, 1, 1, 1).to(memory_format=torch.channels_last)
    ways: list[Callable[[], object]] = [
        lambda: [student.step(params, x, targets, keep=False) for x in images],
        lambda: [grad(loss)(params, x) for x in images],
        lambda: vmap(grad(loss))(stacked, images),
        lambda: [conv2d(x, kernel, padding=1) for x in maps],
        lambda: conv2d(side_by_side, kernels, padding=1, groups=clients),
    ]
    return f"| {name} | " + " | ".join(f"{shortest(way, device):.1f}" for way in ways) + " |"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"ms for {options.clients} clients\n"
        "| images | closed form, loop | autograd, loop | autograd, vmap "
        "| one convolution, loop | grouped |\n|---|---|---|---|---|---|"
    )
    for name in SIZES:
        print(compare(name, options.clients, options.device), flush=True)


if __name__ == "__main__":
    main()
