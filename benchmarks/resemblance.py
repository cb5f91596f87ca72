"""How near one round of distillation comes to training on all the images at once.

Claim: docs/results.md. The paper has a theorem: this resembles centralised training on the
clients' joined data. Here it is looked at: from the same weights theta_0, ten very skewed clients
train once, their updates become images, and theta_0 learns from the union of these alone
(``union.surrogate-update = "synthetic"``); beside it theta_0 trains as long on all clients' real
images (theta_c). By images a class and iterations of distillation:

- the test accuracy of both, and of the mean of the replies (FedAvg);
- the share of test images that both answer alike;
- ``|theta - theta_c| / |theta_0 - theta_c|``, 1 where nothing was learned of where theta_c lies.

No prior helps: images themselves are optimised, from noise. Finished points are kept in ``--out``,
with the settings that made them.

    python benchmarks/resemblance.py --seeds 0 1 2

How long: benchmarks/README.md.
"""

import argparse
import itertools
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from comparing.presets import CPU, Said, division
from inprocess import quiet, rounds_of
from tqdm import tqdm

from feddgm_flwr.build import build_learners, build_tools, first_state
from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.params import Params, load_params
from feddgm_flwr.core.robust import distance
from feddgm_flwr.core.state import ServerState
from feddgm_flwr.data.datasets import load, spec_of
from feddgm_flwr.files import write_atomically

RESULTS = Path(__file__).parent / "results" / "resemblance"
CLIENTS = 10
IMAGES, ITERATIONS = (1, 3, 10), (1, 3, 10, 30)
EPOCHS = 40
"""Passes over the union; its rate is that of the clients."""

COMMON: Said = {
    **CPU,
    **division(0.1, None),
    "num-server-rounds": 1,
    "data.name": "mnist5k",
    "prior.kind": "pixel",
    "start.weights": "random",
    "start.control": False,
    "client.lr": 0.05,
}
CENTRAL: Said = {"method": "fedavg", "data.partition": "iid"}
UNION: Said = {
    "method": "feddgm",
    "union.surrogate-update": "synthetic",
    "union.epochs": EPOCHS,
    "union.lr": 0.05,
}


def settings() -> dict[str, Said]:
    """Return what stands beside the kept points, so that no table mixes two experiments."""
    return {"common": COMMON, "central": CENTRAL, "union": UNION}


@dataclass(frozen=True)
class Point:
    """What one union came to, or, without any, the mean of the replies.

    Attributes
    ----------
    images, iterations
        Images a class and client, and iterations of distillation; 0 images for FedAvg.
    accuracy, central
        On test images: of this surrogate, and of the one trained on all images.
    alike
        Share of test images that both answer alike.
    distance
        To the latter, in units of the start's distance to it.
    loss
        Matching loss that distillation left, the mean over clients; 1 is the start.
    """

    seed: int
    images: int
    iterations: int
    accuracy: float
    central: float
    alike: float
    distance: float
    loss: float


@cache
def start_and_central(seed: int) -> tuple[ServerState, Params]:
    """Return theta_0's state and theta_c."""
    config = RunConfig.from_run_config({**COMMON, **CENTRAL, "seed": seed})
    start = first_state(config, build_tools(config, spec_of(config.data)), quiet)
    (done,) = rounds_of(config, 1, after=start)
    return start, done.state.surrogate


@torch.no_grad()
def answers(config: RunConfig, params: Params) -> torch.Tensor:
    """Return the class that a surrogate answers for each test image."""
    module = build_learners(config, spec_of(config.data)).surrogate.module
    load_params(module, params)
    return module.eval()(load(config.data, "test").images).argmax(1)


def measured(seed: int, images: int, iterations: int) -> Point:
    """Return one point; 0 ``images`` is FedAvg."""
    start, central = start_and_central(seed)
    ours: Said = {"method": "fedavg"}
    if images:
        ours = {
            **UNION,
            "distill.images-per-class": images,
            "distill.iterations": iterations,
        }
    config = RunConfig.from_run_config({**COMMON, **ours, "seed": seed})
    (done,) = rounds_of(config, CLIENTS, after=start)
    found, truth = done.state.surrogate, load(config.data, "test").labels
    own, theirs = answers(config, found), answers(config, central)
    reports = done.report.distilled if done.report else ()
    return Point(
        seed,
        images,
        iterations,
        accuracy=float((own == truth).double().mean()),
        central=float((theirs == truth).double().mean()),
        alike=float((own == theirs).double().mean()),
        distance=distance(found, central) / distance(start.surrogate, central),
        loss=statistics.mean(r.last_loss for r in reports) if reports else 1.0,
    )


def table(points: Sequence[Point]) -> str:
    """Return the means over seeds in Markdown."""
    lines = [
        "| images a class | iterations | matching loss left | accuracy, % | alike, % | distance |",
        "|---|---|---|---|---|---|",
    ]
    for (images, iterations), group in by_kind(points).items():
        mean = {
            name: statistics.mean(getattr(p, name) for p in group)
            for name in ("loss", "accuracy", "alike", "distance")
        }
        name = f"{images} | {iterations} | {mean['loss']:.2f}" if images else "FedAvg | - | -"
        lines.append(
            f"| {name} | {100 * mean['accuracy']:.1f} | {100 * mean['alike']:.1f} "
            f"| {mean['distance']:.2f} |"
        )
    central = statistics.mean(p.central for p in points)
    lines.append(f"| trained on all images | - | - | {100 * central:.1f} | 100.0 | 0.00 |")
    return "\n".join(lines)


def by_kind(points: Sequence[Point]) -> dict[tuple[int, int], list[Point]]:
    """Return (images, iterations) -> the points of all seeds, in order."""
    kinds = sorted({(p.images, p.iterations) for p in points})
    return {k: [p for p in points if (p.images, p.iterations) == k] for k in kinds}


def kept(file: Path) -> list[Point]:
    """Return the points of a file, none where there is no file yet.

    Raises
    ------
    SystemExit
        They were made under other settings.
    """
    if not file.is_file():
        return []
    held = json.loads(file.read_text())
    if held["settings"] != settings():
        raise SystemExit(
            f"{file} must hold points of this script's settings, got those of others; "
            "move it away, or choose another --out"
        )
    return [Point(**point) for point in held["points"]]


def keep(points: Sequence[Point], file: Path) -> None:
    """Write points, and the settings that made them."""
    held = {"settings": settings(), "points": [asdict(p) for p in points]}
    write_atomically(file, json.dumps(held, indent=1).encode())


def draw(points: Sequence[Point], file: Path) -> None:
    """Draw accuracy and distance by iterations, a line for each number of images."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    kinds = by_kind(points)
    for images in IMAGES:
        xs = [t for n, t in kinds if n == images]
        for axes, name, scale in ((left, "accuracy", 100), (right, "distance", 1)):
            ys = [[scale * getattr(p, name) for p in kinds[images, t]] for t in xs]
            places = range(len(xs))
            axes.errorbar(
                places,
                [statistics.mean(y) for y in ys],
                yerr=[statistics.stdev(y) if len(y) > 1 else 0.0 for y in ys],
                marker="o",
                capsize=3,
                label=f"{images} image{'s' * (images > 1)} a class",
            )
            axes.set_xticks(places, [str(x) for x in xs])
    central = statistics.mean(p.central for p in points)
    left.axhline(100 * central, color="black", linestyle="--", label="trained on all images")
    if averaged := kinds.get((0, 0)):
        for axes, name, scale in ((left, "accuracy", 100), (right, "distance", 1)):
            mean = statistics.mean(scale * getattr(p, name) for p in averaged)
            axes.axhline(mean, color="grey", linestyle=":", label="mean of the replies")
    left.set(xlabel="iterations of distillation", ylabel="test accuracy, %")
    right.set(xlabel="iterations of distillation", ylabel="distance to the central surrogate")
    left.legend(fontsize=8, loc="lower right")
    figure.savefig(file, dpi=120)


def main() -> None:
    """Measure what is left, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    file = chosen.out / "points.json"
    done = kept(file)
    known = {(p.seed, p.images, p.iterations) for p in done}
    kinds = [(0, 0), *itertools.product(IMAGES, ITERATIONS)]
    todo = [(s, *kind) for s in chosen.seeds for kind in kinds if (s, *kind) not in known]
    for seed, images, iterations in tqdm(todo, desc="points"):
        done.append(measured(seed, images, iterations))
        keep(done, file)
    told = [p for p in done if p.seed in chosen.seeds]
    draw(told, chosen.out / "resemblance.png")
    text = table(told)
    write_atomically(chosen.out / "table.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
