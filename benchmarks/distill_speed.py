"""What one client-round of distillation costs: the published way, one core, all cores, the floor.

Claim: docs, "Speed". For each workload, in one run: seconds a client-round, peak resident memory
and the matching loss after the same iterations, of the plain reference and of autograd at its best
(one pass, every graph and all freed memory kept; both in ``reference.py``), of the serial engine,
under the workload's memory budget and with every step's trace kept, and of the process engine;
floating-point operations by torch's counter; the machine's own matmul and convolution rates on as
many threads; and the fractions of them that are reached.

    python benchmarks/distill_speed.py [mnist5k cifar-paper imagenette-128]
        [--weights FOLDER] [--data PACK.npz] [--iterations N] [--device cuda] [--out FILE.json]

``mnist5k`` is the demo's median client; ``cifar-paper`` the paper's settings at depth 3 and 5 (100
images a student step); ``imagenette-128`` the same at 128 pixels with one image a class. --weights
names an autoencoder in diffusers' layout: imagenette-128 needs it, cifar-paper uses it in place of
pixels. --data names a JPEG pack of the workload's data (see unpack_images.py), of which a client is
trained; random images cost the same. Only ``--iterations`` are run and the time is scaled to the
workload's, which all cost alike. Every figure comes from a fresh process. Linux only (/proc).
"""

import argparse
import gc
import io
import json
import math
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from inprocess import client_sets, local_update
from reference import distill_in_one_pass, distill_plainly
from torch import Tensor
from torch.nn.functional import conv2d, one_hot
from torch.utils.flop_counter import FlopCounterMode
from watching import PeakMemory

from feddgm_flwr.build import build_tools, workshop
from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.algorithm import distill_job
from feddgm_flwr.core.distillation.distill import (
    Bench,
    DistillJob,
    decode,
    distill_client,
    first_latents,
    student_input,
    student_of,
)
from feddgm_flwr.core.distillation.engine import ProcessEngine, SerialEngine, threads
from feddgm_flwr.core.images import ImageSpec
from feddgm_flwr.core.memory import keep_freed_memory
from feddgm_flwr.core.models import build_surrogate, initialise
from feddgm_flwr.core.params import params_of
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.start import fresh_state
from feddgm_flwr.core.training import TrainConfig, train
from feddgm_flwr.data.datasets import spec_of
from feddgm_flwr.priors import build_prior

WORKLOADS = {
    "mnist5k": ("mnist5k",),
    "cifar-paper": ("cifar-paper-3", "cifar-paper-5"),
    "imagenette-128": ("imagenette-128",),
}
"""Name on the command line -> cases."""
ITERATIONS = {"mnist5k": 30, "cifar-paper-3": 2, "cifar-paper-5": 2, "imagenette-128": 2}
"""Case -> iterations that are run, unless --iterations says otherwise."""
BUDGET_MB = {"cifar-paper-3": 100, "cifar-paper-5": 100, "imagenette-128": 500}
"""Case -> ``distill.memory-budget-mb``; 0 where not named."""
LOCAL_IMAGES = {32: 512, 128: 64}
"""Side in pixels -> images that the client of a paper workload trains on, one epoch."""
CLIENTS = 10
"""Clients of mnist5k, of which the median one is distilled."""
TOLERANCE = {"mnist5k": 0.02, "cifar-paper-3": 0.02, "cifar-paper-5": 0.1, "imagenette-128": 0.1}
"""Case -> largest relative distance of the final loss from the references'. At depth 5 float32
itself leaves several percent of the loss open (``float32_error.py``)."""


PUBLISHED, ONE_PASS, KEPT = "reference", "one pass", ", traces kept"
AUTOGRAD = {PUBLISHED: distill_plainly, ONE_PASS: distill_in_one_pass}
"""Way -> what the engine is measured against."""

Gradient = Literal["exact", "detached"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Case:
    """A client-round to be measured.

    Attributes
    ----------
    iterations
        Of a whole client-round; the bench's own are the few that are run.
    """

    name: str
    bench: Bench
    job: DistillJob
    iterations: int


@dataclass(frozen=True)
class Measured:
    """What one way of computing a case took.

    Attributes
    ----------
    seconds
        A client-round, scaled to all of its iterations.
    peak_mb
        Largest memory of all processes (``PeakMemory``); on CUDA the device's.
    loss
        Matching loss at the last iteration that was run.
    """

    way: str
    threads: int
    clients: int
    seconds: float
    peak_mb: float
    loss: float


@dataclass(frozen=True)
class Floor:
    """What the hardware could do.

    Attributes
    ----------
    flops
        Key of ``counted_as`` -> of a whole client-round.
    step_mb
        Bytes that one student step's trace holds on to.
    matmul, convolution
        Threads -> measured float32 rate, in GFLOP/s. Where the matrix library does not suit the
        processor, convolutions are faster than it, and theirs is the nearer ceiling.
    """

    flops: dict[str, float]
    step_mb: float
    matmul: dict[int, float]
    convolution: dict[int, float]


def build_case(name: str, options: argparse.Namespace) -> Case:
    """Return the named case, with a client that has really been trained."""
    case = mnist5k(options.device) if name == "mnist5k" else paper_case(name, options)
    run = options.iterations or ITERATIONS[name]
    budget = BUDGET_MB.get(name, 0) if options.budget is None else options.budget
    config = replace(case.bench.config, iterations=run, stop_tolerance=0.0, memory_budget_mb=budget)
    return replace(case, bench=replace(case.bench, config=config))


def mnist5k(device: torch.device) -> Case:
    """Return the client of the demo that owns the median number of classes."""
    config = RunConfig.from_run_config({"distill.engine": "serial"})
    tools = build_tools(config, spec_of(config.data))
    owned = client_sets(config.data, CLIENTS, config.seed)
    median = sorted(range(CLIENTS), key=lambda i: len(torch.unique(owned[i].labels)))[CLIENTS // 2]
    state = fresh_state(tools.learners, seed=config.seed)
    update = local_update(config, tools, state, owned[median], median)
    with workshop(config, tools) as shop:
        job = distill_job(update, state, shop)
        bench = replace(shop.bench, device=device)
    return Case("mnist5k", bench, job, config.distill.iterations)


def paper_case(name: str, options: argparse.Namespace) -> Case:
    """Return a client under the paper's settings, at 32 or 128 pixels."""
    large = name == "imagenette-128"
    if large and not options.weights:
        raise ValueError(
            "imagenette-128 decodes latents; name an autoencoder's folder by --weights"
        )
    said: dict[str, Any] = {"recipe": "paper", "surrogate.depth": 3 if name[-1] == "3" else 5}
    if options.weights:
        said |= {"prior.kind": "autoencoder", "prior.path": options.weights}
        said |= {"prior.image-scale": 1 if large else 2}
    else:
        said |= {"prior.kind": "pixel"}
    if large:
        said |= {"distill.images-per-class": 1}
    config = RunConfig.from_run_config(said)
    classes = tuple(map(str, range(10)))
    spec = ImageSpec(3, 128 if large else 32, classes, (0.5,) * 3, (0.25,) * 3, flip=True)
    model = build_surrogate(config.surrogate, spec)
    initialise(model, rng=derive(0, "surrogate"))
    start = params_of(model)
    images, labels = read_pack(options.data, spec) if options.data else random_images(spec)
    local = TrainConfig(epochs=1, lr=config.client.lr, batch_size=32)
    train(model, images, labels, local, rng=derive(0, "client", 1, 0))
    per_class = dict.fromkeys(range(10), config.distill.images_per_class)
    job = DistillJob(0, 1, 0, start, params_of(model), per_class, None)
    prior = build_prior(config.prior, spec)
    chunk = 4 if options.device.type == "cpu" else 64
    bench = Bench(model, prior, config.distill, spec, chunk, options.device)
    return Case(name, bench, job, config.distill.iterations)


def random_images(spec: ImageSpec) -> tuple[Tensor, Tensor]:
    """Return noise; it costs what pictures cost."""
    rng = derive(0, "noise")
    count = LOCAL_IMAGES[spec.size]
    shape = (count, spec.channels, spec.size, spec.size)
    return torch.rand(shape, generator=rng), torch.arange(count) % spec.num_classes


def read_pack(path: Path, spec: ImageSpec) -> tuple[Tensor, Tensor]:
    """Return a few training images of a JPEG pack, evenly spaced."""
    from PIL import Image

    pack = np.load(path)
    streams, ends = pack["jpeg"], pack["offsets"]
    train_part = np.flatnonzero(~pack["test"].astype(bool))
    picked = train_part[np.linspace(0, len(train_part) - 1, LOCAL_IMAGES[spec.size]).astype(int)]
    pictures = []
    for i in picked:
        stream = io.BytesIO(streams[ends[i] : ends[i + 1]].tobytes())
        picture = np.asarray(Image.open(stream).convert("RGB"))
        if picture.shape[:2] != (spec.size, spec.size):
            raise ValueError(
                f"--data must hold images of {spec.size} pixels for this workload, got "
                f"{picture.shape[:2]}; name the workload's own pack"
            )
        pictures.append(picture)
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    return images, torch.from_numpy(pack["label"][picked].astype(np.int64))


def measure_autograd(case: Case, way: str, num_threads: int) -> Measured:
    """Run one of ``AUTOGRAD`` on one client; the published way is left as it is found."""
    if way == ONE_PASS:
        keep_freed_memory()
    distil, bench = AUTOGRAD[way], placed(case.bench)
    with threads(num_threads):
        distil(small(case.job), bench, 1)
        with PeakMemory(bench.device) as peak:
            began = time.perf_counter()
            losses = distil(case.job, bench, bench.config.iterations)
            seconds = time.perf_counter() - began
    return Measured(way, num_threads, 1, scaled(case, seconds, 1), peak.mb, losses[-1])


def measure_serial(
    case: Case,
    gradient: Gradient,
    precision: Precision = "float32",
    compiled: bool = False,
    all_kept: bool = False,
) -> Measured:
    """Run the serial engine, on one thread, on one client."""
    config = replace(case.bench.config, gradient=gradient, precision=precision, compile=compiled)
    if all_kept:
        config = replace(config, memory_budget_mb=0)
    bench = placed(replace(case.bench, config=config))
    if compiled:  # its kernels are made before the clock starts
        once = SerialEngine(replace(bench, config=replace(config, iterations=1)))
        once.run([case.job], lambda *_: None, lambda _: None)
    seconds, loss, peak = measure_engine(SerialEngine(bench), [case.job], bench.device)
    way = f"serial, {gradient}" + ("" if precision == "float32" else f", {precision}")
    way += ", compiled" if compiled else ""
    way += KEPT if all_kept else ""
    return Measured(way, 1, 1, scaled(case, seconds, 1), peak, loss)


def measure_processes(case: Case, gradient: Gradient, workers: int) -> Measured:
    """Run the process engine on one client a worker."""
    bench = replace(case.bench, config=replace(case.bench.config, gradient=gradient))
    # The same client many times, so that no worker waits for a larger one.
    jobs = [case.job] * workers
    seconds, loss, peak = measure_engine(ProcessEngine(bench, workers), jobs, bench.device)
    way = f"{workers} processes, {gradient}"
    return Measured(way, workers, workers, scaled(case, seconds, workers), peak, loss)


def measure_engine(
    engine: SerialEngine | ProcessEngine, jobs: list[DistillJob], device: torch.device
) -> tuple[float, float, float]:
    """Return seconds, the last loss and the peak memory of all jobs; started workers are warm."""
    try:
        engine.run([small(job) for job in jobs for _ in range(4)], lambda *_: None, lambda _: None)
        with PeakMemory(device) as peak:
            began = time.perf_counter()
            results = engine.run(jobs, lambda *_: None, lambda _: None)
            seconds = time.perf_counter() - began
    finally:
        engine.close()
    if failed := [r.report.stopped for r in results if r.report.stopped]:
        raise RuntimeError(f"distillation stopped early: {failed[0]}")
    return seconds, results[0].report.last_loss, peak.mb


def small(job: DistillJob) -> DistillJob:
    """Return the job with one image of one class: enough to load what is loaded lazily."""
    return replace(job, images_per_class=dict.fromkeys([*job.images_per_class][:1], 1))


def placed(bench: Bench) -> Bench:
    """Return the bench with its weights on its device."""
    bench.student.to(bench.device)
    return replace(bench, prior=bench.prior.to(bench.device))


def scaled(case: Case, seconds: float, clients: int) -> float:
    """Return seconds of a whole client-round."""
    return seconds / clients / case.bench.config.iterations * case.iterations


def measure_floor(case: Case, counts: tuple[int, ...]) -> Floor:
    """Count one iteration's operations and measure the matmul rate."""
    bench = placed(replace(case.bench, config=replace(case.bench.config, iterations=1)))
    detached = replace(bench, config=replace(bench.config, gradient="detached"))
    latents = first_latents(case.job, bench)
    values, targets = latents.values, one_hot(latents.labels, bench.num_classes).float()
    # The final decoding, which is not part of an iteration.
    after = counted(lambda: decode(bench.prior, values, bench))
    kept = replace(detached, config=replace(detached.config, memory_budget_mb=0))
    flops = {
        **{way: counted(partial(distil, case.job, bench, 1)) for way, distil in AUTOGRAD.items()},
        "": counted(lambda: distill_client(case.job, detached)) - after,
        KEPT: counted(lambda: distill_client(case.job, kept)) - after,
    }
    images = bench.prior.decode(values.to(bench.device)).detach()
    start = {k: v.to(bench.device) for k, v in case.job.start.items()}
    seen = student_input(bench, case.job, 0, len(images))(images, targets.to(bench.device), 0)
    step = student_of(bench.student).step(start, *seen, keep=True)[1].nbytes
    gc.collect()
    return Floor(
        {way: each * case.iterations for way, each in flops.items()},
        step / 2**20,
        {n: matmul_gflops(n, bench.device) for n in counts},
        {n: convolution_gflops(n, bench.device) for n in counts},
    )


def counted(work: Callable[[], object]) -> float:
    """Return the floating-point operations of ``work`` (convolutions and matrix products)."""
    counter = FlopCounterMode(display=False)
    # Its hooks on modules cannot bear gradients taken inside; only the sum is wanted here.
    counter.mod_tracker = _Everywhere()  # type: ignore[assignment]
    with counter:
        work()
    return float(counter.get_total_flops())


class _Everywhere(nullcontext[None]):
    """A tracker of modules that knows of none."""

    parents = frozenset({"Global"})


def matmul_gflops(num_threads: int, device: torch.device, side: int = 2048) -> float:
    """Return the best rate of several float32 matrix products."""
    a = torch.rand(side, side, device=device)
    return 2 * side**3 / shortest(lambda: a @ a, num_threads) / 1e9


def convolution_gflops(num_threads: int, device: torch.device) -> float:
    """Return the best rate of the paper's second convolution, on 100 images, forwards."""
    images, weight = (
        torch.rand(shape, device=device).to(memory_format=torch.channels_last)
        for shape in ((100, 128, 16, 16), (128, 128, 3, 3))
    )
    flops = 2 * images.numel() * weight[0].numel()
    return flops / shortest(lambda: conv2d(images, weight, padding=1), num_threads) / 1e9


@torch.no_grad()
def shortest(work: Callable[[], Tensor], num_threads: int) -> float:
    """Return the least seconds of eight runs."""
    times = []
    with threads(num_threads):
        for _ in range(8):
            began = time.perf_counter()
            float(work().flatten()[0])  # waits for a GPU
            times.append(time.perf_counter() - began)
    return min(times)


@contextmanager
def fresh_process() -> Iterator[Callable[..., Any]]:
    """Run functions in a new process, whose memory nothing else has touched."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        yield lambda task, *args: pool.submit(task, *args).result()


def measure(case: Case, cores: int) -> tuple[list[Measured], Floor]:
    """Measure every way of computing a case, one after the other."""
    cpu = case.bench.device.type == "cpu"
    counts = (1, cores) if cpu and cores > 1 else (1,)
    plan: list[tuple[Any, ...]] = [
        (measure_autograd, case, way, n) for way in AUTOGRAD for n in counts
    ]
    # The engine on the reference's own gradient, so that the losses must agree ...
    plan.append((measure_serial, case, "detached"))
    if case.bench.config.memory_budget_mb:
        plan.append((partial(measure_serial, all_kept=True), case, "detached"))
    # ... and on the workload's, if that is another.
    if (own := case.bench.config.gradient) != "detached":
        plan.append((measure_serial, case, own))
    plan.append((measure_serial, case, "detached", "bfloat16"))
    plan.append((measure_serial, case, "detached", "float32", True))
    ways = []
    for task, *arguments in plan:
        with fresh_process() as run:
            ways.append(run(task, *arguments))
            print(f"  {ways[-1]}", file=sys.stderr, flush=True)
    if cpu and cores > 1:
        with fresh_process() as run:
            ways.append(run(measure_processes, case, "detached", cores))
            print(f"  {ways[-1]}", file=sys.stderr, flush=True)
    with fresh_process() as run:
        floor: Floor = run(measure_floor, case, counts)
    return ways, floor


def table(case: Case, ways: list[Measured], floor: Floor) -> list[str]:
    """Return markdown rows.

    Ratios are from the faster of the reference's thread counts, and from one pass of autograd on as
    many threads.
    """
    best = min(w.seconds for w in ways if w.way == PUBLISHED)
    plain = next(w.loss for w in ways if w.way == PUBLISHED)
    one_pass = {w.threads: w.seconds for w in ways if w.way == ONE_PASS}
    rows = []
    for w in ways:
        flops = floor.flops[counted_as(w.way)]
        # Exact pulls through the parameters too; its operations are not counted here.
        counts = "exact" not in w.way
        rate = flops / w.seconds / 1e9
        of_matmul = 100 * rate / floor.matmul[w.threads]
        of_convolution = 100 * rate / floor.convolution[w.threads]
        rows.append(
            f"| {case.name} | {w.way} | {w.threads} | {w.seconds:.1f} | {best / w.seconds:.2f} |"
            f" {one_pass[w.threads] / w.seconds:.2f} |"
            f" {w.peak_mb:.0f} | {w.loss:.5f} | {100 * (w.loss / plain - 1):+.2f} % |"
            + (
                f" {flops / 1e9:.0f} | {of_matmul:.0f} % | {of_convolution:.0f} % |"
                if counts
                else " - | - | - |"
            )
        )
    return rows


def counted_as(way: str) -> str:
    """Return the key of ``Floor.flops`` for a way of computing."""
    return way if way in AUTOGRAD else KEPT if KEPT in way else ""


HEAD = """\
| workload | way | threads | s a client-round | times faster | than one pass | peak MB | loss \
| from reference | GFLOP | of matmul rate | of convolution rate |
|---|---|---|---|---|---|---|---|---|---|---|---|"""


def machine(device: torch.device) -> dict[str, str]:
    """Return what the figures were measured on."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    models = [line.split(":")[1].strip() for line in info.splitlines() if "model name" in line]
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "none used"
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "gpu": gpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": f"{os.getloadavg()[0]:.1f}",
    }


def record(case: Case, ways: list[Measured], floor: Floor) -> dict[str, Any]:
    """Return a case as JSON."""
    return {
        "workload": case.name,
        "images": sum(case.job.images_per_class.values()),
        "iterations": case.iterations,
        "iterations_run": case.bench.config.iterations,
        "student_steps": case.bench.config.student_steps,
        "memory_budget_mb": case.bench.config.memory_budget_mb,
        "prior": type(case.bench.prior).__name__,
        "ways": [asdict(w) for w in ways],
        "floor": asdict(floor),
    }


def disagreement(ways: list[Measured]) -> float:
    """Return how far the detached engines' loss is outside the references' own, relatively.

    The descent amplifies rounding, so that the reference on one thread and on two end apart too.
    """
    if not all(math.isfinite(w.loss) for w in ways):
        return math.inf
    plain = [w.loss for w in ways if w.way in AUTOGRAD]
    return max(
        max(w.loss / max(plain) - 1, 1 - w.loss / min(plain), 0.0)
        for w in ways
        if "detached" in w.way and "bfloat16" not in w.way
    )


def main() -> None:
    """Run the benchmark; exit with 1 if a loss is not the reference's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workloads", nargs="*", default=[], metavar="WORKLOAD")
    parser.add_argument("--weights", default="", help="autoencoder folder, diffusers' layout")
    parser.add_argument("--data", type=Path, help="JPEG pack of the workload's images")
    parser.add_argument("--iterations", type=int, default=0, help="iterations that are run")
    parser.add_argument("--budget", type=int, help="distill.memory-budget-mb")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    cases = [case for group in WORKLOADS.values() for case in group]
    asked = [c for w in options.workloads or ["mnist5k"] for c in WORKLOADS.get(w, (w,))]
    if unknown := sorted(set(asked) - set(cases)):
        parser.error(f"WORKLOAD must be of {[*WORKLOADS]} or {cases}, got {unknown}")

    cores = len(os.sched_getaffinity(0))
    where = machine(options.device)
    print(", ".join(f"{k}: {v}" for k, v in where.items()), flush=True)
    rows, records, notes, apart = [], [], [], list[str]()
    for name in asked:
        with threads(cores):
            case = build_case(name, options)
        ways, floor = measure(case, cores)
        rows += table(case, ways, floor)
        records.append(record(case, ways, floor))
        if (distance := disagreement(ways)) > TOLERANCE[name]:
            apart.append(f"{name}: {distance:.1%}, {TOLERANCE[name]:.0%} allowed")
        rates = ", ".join(
            f"{n} threads {g:.0f} and {floor.convolution[n]:.0f} GFLOP/s"
            for n, g in floor.matmul.items()
        )
        notes.append(
            f"{name}: {records[-1]['images']} images, {records[-1]['prior']}, "
            f"{case.bench.config.iterations} of {case.iterations} iterations run and scaled; "
            f"one step's trace {floor.step_mb:.0f} MB; matmul and convolution {rates}"
        )
    print("\n".join([HEAD, *rows, "", *notes]))
    if options.out:
        whole = {"machine": where, "workloads": records}
        options.out.write_text(json.dumps(whole, indent=1), encoding="utf-8")
    if apart:
        sys.exit(f"a final loss is away from the reference's: {'; '.join(apart)}")


if __name__ == "__main__":
    main()
