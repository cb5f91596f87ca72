"""How distillation's cost grows with clients, images a class, student steps and image size.

Claim: docs, "Speed": linear in clients and student steps, at most so in images and pixels. A narrow
ConvNet (depth 3, width 16) and three classes keep it short; the exponent is the slope of log
seconds over log size, by least squares. Image size is in pixels (side squared). Each point is the
best of ``--repeats``, by the serial engine on one thread.
What the server holds grows with clients too: resident memory after each point is in the table.

    python benchmarks/scaling.py [--repeats 3] [--out FILE.json] [--png FILE.png]
"""

import argparse
import json
import math
import time
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from stand_in import stand_in
from watching import proc_mb

from feddgm_flwr.core.distillation.distill import Bench, DistillJob
from feddgm_flwr.core.distillation.engine import SerialEngine
from feddgm_flwr.core.distillation.settings import DistillConfig
from feddgm_flwr.core.params import params_of
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.priors.pixel import PixelPrior

AXES: dict[str, tuple[int, ...]] = {
    "clients": (1, 2, 5, 10, 20, 50, 100, 200),
    "images a class": (4, 8, 16, 32, 64),
    "student steps": (2, 4, 8, 16, 32),
    "pixels": (16**2, 24**2, 32**2, 48**2, 64**2),
}
"""What grows -> its sizes; the others stay as ``Load`` says."""


@dataclass(frozen=True)
class Load:
    """One amount of work."""

    clients: int = 1
    images_per_class: int = 4
    student_steps: int = 4
    side: int = 16


@dataclass(frozen=True)
class Point:
    """What it took.

    Attributes
    ----------
    resident_mb
        Of this process once the results are there, still held.
    """

    size: int
    seconds: float
    resident_mb: float


def load_of(axis: str, size: int) -> Load:
    """Return the work at one point of an axis."""
    match axis:
        case "clients":
            return Load(clients=size)
        case "images a class":
            return Load(images_per_class=size)
        case "student steps":
            return Load(student_steps=size)
        case "pixels":
            return Load(side=round(size**0.5))
    raise ValueError(f"axis must be one of {[*AXES]}, got {axis!r}; correct AXES")


def measure(axis: str, size: int, repeats: int) -> Point:
    """Distil all clients ``repeats`` times and keep the best."""
    load = load_of(axis, size)
    bench, jobs = build(load)
    engine = SerialEngine(bench)
    engine.run(jobs[:1], lambda *_: None, lambda _: None)
    seconds, resident = [], 0.0
    for _ in range(repeats):
        began = time.perf_counter()
        results = engine.run(jobs, lambda *_: None, lambda _: None)
        seconds.append(time.perf_counter() - began)
        resident = proc_mb("self/status", "VmRSS")
        if failed := [r.report.stopped for r in results if r.report.stopped]:
            raise RuntimeError(f"distillation stopped early: {failed[0]}")
    return Point(size, min(seconds), resident)


def build(load: Load) -> tuple[Bench, list[DistillJob]]:
    """Return clients that each moved the surrogate somewhere of their own."""
    spec, student = stand_in(3, load.side, width=16, classes=3)
    start = params_of(student)
    config = DistillConfig(
        images_per_class=load.images_per_class,
        iterations=2,
        student_steps=load.student_steps,
        engine="serial",
    )
    bench = Bench(student, PixelPrior(spec), config, spec, 32, torch.device("cpu"))
    jobs = []
    for client in range(load.clients):
        rng = derive(0, "client", 1, client)
        target = {k: p + 0.01 * torch.randn(p.shape, generator=rng) for k, p in start.items()}
        per_class = dict.fromkeys(range(3), load.images_per_class)
        jobs.append(DistillJob(client, 1, 0, start, target, per_class, None))
    return bench, jobs


def exponent(points: list[Point]) -> float:
    """Return the slope of log seconds over log size; NaN of fewer than two points."""
    if len(points) < 2:
        return math.nan
    sizes, seconds = zip(*((p.size, p.seconds) for p in points), strict=True)
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def draw(curves: dict[str, list[Point]], path: Path) -> None:
    """Write one log-log panel an axis, with the line of exponent 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout="constrained")
    panels = figure.subplots(2, 2).flatten()
    for panel, (axis, points) in zip(panels, curves.items(), strict=True):
        sizes, seconds = [p.size for p in points], [p.seconds for p in points]
        panel.loglog(sizes, seconds, "o-", label=f"measured, exponent {exponent(points):.2f}")
        linear = [seconds[-1] * size / sizes[-1] for size in sizes]
        panel.loglog(sizes, linear, "--", color="grey", label="exponent 1")
        panel.set(xlabel=axis, ylabel="seconds, two iterations")
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.minorticks_off()
        panel.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--most", type=int, help="leave out sizes above this (a quick trial)")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--png", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    most = options.most or max(max(sizes) for sizes in AXES.values())
    curves = {
        axis: [measure(axis, size, options.repeats) for size in sizes if size <= most]
        for axis, sizes in AXES.items()
    }
    print("| axis | size: seconds | exponent | resident MB, first and last |\n|---|---|---|---|")
    for axis, points in filter(itemgetter(1), curves.items()):
        cells = ", ".join(f"{p.size}: {p.seconds:.3f}" for p in points)
        memory = f"{points[0].resident_mb:.0f}, {points[-1].resident_mb:.0f}"
        print(f"| {axis} | {cells} | {exponent(points):.2f} | {memory} |")
    if options.out:
        whole = {
            axis: {"exponent": exponent(points), "points": [vars(p) for p in points]}
            for axis, points in curves.items()
        }
        options.out.write_text(json.dumps(whole, indent=1), encoding="utf-8")
    if options.png:
        draw(curves, options.png)


if __name__ == "__main__":
    main()
