"""One client's latents descend the matching loss (paper, step 3; Algorithm 1's inner loop).

``distill_client`` takes a job (where the client started, where it ended, which classes it owns) and
a bench (the frozen prior, the surrogate's architecture, the settings) and returns latents, decoded
images and a report. It knows no Flower, no round and no other client, so jobs may run anywhere, in
any order, with the same result.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import one_hot

from feddgm_flwr.core.augment import Pixels, augment, is_siamese
from feddgm_flwr.core.capturing import Replayed
from feddgm_flwr.core.distillation.convnet import ConvNetStudent
from feddgm_flwr.core.distillation.glimpse import Glimpse, glimpse, moments
from feddgm_flwr.core.distillation.matching import (
    MatchingGradients,
    StepInput,
    matching_gradients,
)
from feddgm_flwr.core.distillation.nearness import pull
from feddgm_flwr.core.distillation.settings import DistillConfig
from feddgm_flwr.core.distillation.student import AutogradStudent, Student
from feddgm_flwr.core.images import ImageSpec
from feddgm_flwr.core.models import SURROGATE, ConvNet
from feddgm_flwr.core.params import Params, all_finite, on, squared_distance
from feddgm_flwr.core.prior import Prior
from feddgm_flwr.core.seeding import derive, derive_seed
from feddgm_flwr.core.state import DistillReport
from feddgm_flwr.core.synthetic import Latents, extend_latents, fresh_latents

UNMOVED = "no step was taken, and bare samples of a prior that knows no class are of none"
"""Why a job gave no images though nothing failed."""

Progress = Callable[[int, int, float, Glimpse | None], None]
"""``progress(iteration, iterations, loss, glimpse)``, the last of the images before the step."""


@dataclass(frozen=True)
class Bench:
    """What every job of a run shares.

    Attributes
    ----------
    student
        The surrogate's architecture; its own weights are never read.
    chunk
        Images decoded at a time.
    narrow
        Name -> architecture of each narrower surrogate.
    spread
        Of the prior's samples, by channel; None where ``config.prior_weight`` is 0.
    """

    student: nn.Module
    prior: Prior
    config: DistillConfig
    spec: ImageSpec
    chunk: int
    device: torch.device
    narrow: Mapping[str, nn.Module] = field(default_factory=dict)
    spread: Float[Tensor, "c ..."] | None = None

    def of(self, name: str) -> "Bench":
        """Return the same with the student that the surrogate called ``name`` needs."""
        return self if name == SURROGATE else replace(self, student=self.narrow[name])

    @property
    def num_classes(self) -> int:
        """Number of classes of the data set."""
        return self.spec.num_classes


@dataclass(frozen=True)
class DistillJob:
    """One client's trajectory, to be turned into images.

    Attributes
    ----------
    start, target
        theta_t and theta_i.
    images_per_class
        Class -> number of images; only the classes to distil.
    latents
        The client's latents of an earlier round, or None.
    surrogate
        Name of the surrogate whose trajectory it is.
    owned
        The classes that the client is proved to own, whether all are distilled or not.
    glimpses
        Images of which ``progress`` is shown how they grow.
    """

    partition_id: int
    server_round: int
    seed: int
    start: Params
    target: Params
    images_per_class: dict[int, int]
    latents: Latents | None
    surrogate: str = SURROGATE
    owned: tuple[int, ...] = ()
    glimpses: int = 0


@dataclass(frozen=True)
class DistillResult:
    """A job's outcome; without one finite step ``latents`` are the client's old ones, or None.

    Attributes
    ----------
    images
        Decoded, as the student saw them: clamped, they would no longer take it to the client's end.
    targets
        Class probabilities.
    """

    latents: Latents | None
    images: Float[Tensor, "n c h w"]
    targets: Float[Tensor, "n k"]
    report: DistillReport


def distill_client(
    job: DistillJob, bench: Bench, *, progress: Progress | None = None
) -> DistillResult:
    """Optimise the job's latents, student learning rate and (if soft) labels.

    A non-finite loss ends the descent at the last finite latents and is reported, never raised.
    """
    if reason := nothing_to_distil(job):
        return failed_result(job, bench, reason)
    began = time.perf_counter()
    config, device = bench.config, bench.device
    latents = first_latents(job, bench)
    iterations = config.iterations if job.latents is None else config.warm_iterations
    match = _Matching(job, bench)
    variables = Variables(latents, config, bench.num_classes, device, bench.spread)
    losses: list[float] = []
    stopped = ""
    best = latents
    keep = not config.memory_budget_mb
    shown = moments(iterations) if job.glimpses else frozenset()
    for iteration in range(iterations):
        decoded = _Decoded(bench.prior, variables.values, bench.chunk, keep=keep)
        images, targets = decoded.images, variables.targets()
        seen = (
            glimpse(images, latents.labels, iteration=iteration, count=job.glimpses)
            if iteration in shown
            else None
        )
        gradients = match(iteration, images, targets, variables.student_lr())
        loss = float(gradients.loss)
        if not math.isfinite(loss):
            stopped = f"non-finite matching loss at iteration {iteration + 1}"
            break
        losses.append(loss)
        best = variables.latents(latents.labels)
        variables.step(decoded.pull(gradients.images), targets, gradients)
        if progress:
            progress(iteration + 1, iterations, loss, seen)
        if converged(losses, config.stop_tolerance):
            stopped = "converged"
            break
    if stopped in ("", "converged"):
        best, stopped = after_last_step(variables.latents(latents.labels), best, stopped)
    return _result(job, bench, (latents, best), losses, stopped, time.perf_counter() - began)


class _Matching:
    """The matching loss of a job's images and its gradients, iteration by iteration."""

    def __init__(self, job: DistillJob, bench: Bench) -> None:
        self._job, self._bench, config = job, bench, bench.config
        self._start, self._target = (on(bench.device, p) for p in (job.start, job.target))
        self._student = student_of(
            bench.of(job.surrogate).student.to(bench.device),
            config.precision,
            compiled=config.compile,
        )
        self._kept_steps = None if config.memory_budget_mb else config.student_steps
        self._replayed: Replayed[MatchingGradients] | None = None

    def __call__(
        self, iteration: int, images: Tensor, targets: Tensor, lr: Tensor
    ) -> MatchingGradients:
        """Return what holds until the next call."""
        config = self._bench.config
        seen = student_input(self._bench, self._job, iteration, len(images))
        if self._kept_steps is None:
            budget = config.memory_budget_mb * 2**20
            first = seen(images, targets, 0)
            self._kept_steps = steps_within(budget, self._student, self._start, first)
        # Of nothing that holds this object: a cycle would keep a client's recording and its memory
        # until Python looks for cycles.
        gradients = partial(
            matching_gradients,
            self._student,
            seen,
            self._start,
            self._target,
            steps=config.student_steps,
            exact=config.gradient == "exact",
            kept_steps=self._kept_steps,
        )
        if self._bench.device.type != "cuda" or not sees_all(config, len(images)):
            return gradients(images, targets, lr)
        if self._replayed is None:
            self._replayed = Replayed(gradients)
        return self._replayed(images, targets, lr)


def first_latents(job: DistillJob, bench: Bench) -> Latents:
    """Return where the descent begins: at the client's last latents, and new ones for the rest."""
    rng = derive(job.seed, "latents", job.server_round, job.partition_id)
    make = (bench.prior, job.images_per_class, bench.num_classes, bench.config)
    if job.latents is None:
        return fresh_latents(*make, rng=rng)
    return extend_latents(job.latents, *make, rng=rng)


def has_moved(job: DistillJob, start: Latents, end: Latents) -> bool:
    """Whether no latent is still a bare sample: of a prior that knows no class it shows none."""
    if job.latents is not None and len(job.latents.labels) == len(start.labels):
        return True
    return not torch.equal(start.values, end.values)


def after_last_step(last: Latents, before: Latents, stopped: str) -> tuple[Latents, str]:
    """Return what is kept, and why the descent ended: no loss has judged the last step yet."""
    if all_finite(vars(last)):
        return last, stopped
    return before, "the last step left non-finite latents, so those before it are kept"


def steps_within(budget: int, student: Student, start: Params, seen: tuple[Tensor, Tensor]) -> int:
    """Return how many steps' traces ``budget`` bytes hold, told by the trace of one image."""
    _, trace = student.step(start, *(t[:1] for t in seen), keep=True)
    return budget // (trace.nbytes * len(seen[0]))


def nothing_to_distil(job: DistillJob) -> str:
    """Return why a job has neither trajectory nor classes to be distilled; "" if it has both."""
    if not job.images_per_class and job.latents is None:
        return "the reply proves no class"
    if squared_distance(job.start, job.target) == 0:
        return "the reply is what the client was sent, so there is no trajectory to match"
    return ""


def student_of(module: nn.Module, precision: str = "float32", *, compiled: bool = False) -> Student:
    """Return how ``module`` is differentiated: the ConvNet in closed form, any other by torch."""
    # A subclass may compute something else; only this very class is what was written out.
    if type(module) is ConvNet:
        rounded = None if precision == "float32" else torch.bfloat16
        return ConvNetStudent(module, rounded, compiled=compiled)
    return AutogradStudent(module)


def student_input(bench: Bench, job: DistillJob, iteration: int, num_images: int) -> StepInput:
    """Return what the student sees at each step: a minibatch, augmented."""
    config = bench.config
    address = (job.server_round, job.partition_id, iteration)
    batch = config.student_batch
    batches = (
        minibatches(
            num_images,
            batch,
            config.student_steps,
            rng=derive(job.seed, "student-batches", *address),
        )
        if 0 < batch < num_images
        else None
    )
    base = derive_seed(job.seed, "student-augment", *address)
    siamese = is_siamese(config.augment)
    pixels = Pixels.of(bench.spec.mean, bench.spec.std)

    def seen(images: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        if batches is not None:
            chosen = batches[step].to(images.device)
            images, targets = images[chosen], targets[chosen]
        if config.augment:
            rng = torch.Generator().manual_seed(base + step)
            images = augment(images, config.augment, rng=rng, siamese=siamese, pixels=pixels)
        return images, targets

    return seen


def sees_all(config: DistillConfig, num_images: int) -> bool:
    """Whether the student sees every image as it is, at each step of each iteration."""
    return not config.augment and not 0 < config.student_batch < num_images


def minibatches(n: int, size: int, steps: int, *, rng: torch.Generator) -> list[Tensor]:
    """Return ``steps`` index batches that pass over 0..n-1 in seeded epochs."""
    epochs = -(-steps // (n // size))
    order = [
        torch.split(torch.randperm(n, generator=rng)[: n // size * size], size)
        for _ in range(epochs)
    ]
    return [batch for epoch in order for batch in epoch][:steps]


def converged(losses: list[float], tolerance: float, window: int = 5) -> bool:
    """Whether the best loss of the last ``window`` beats all before by less than ``tolerance``."""
    if tolerance <= 0 or len(losses) < 2 * window:
        return False
    before, now = min(losses[:-window]), min(losses[-window:])
    return now > before * (1 - tolerance)


class _Decoded:
    """The latents' images, ``chunk`` at a time, and the way back to the latents.

    Without ``keep`` no graph waits for the way back; images are decoded once more there.
    """

    def __init__(self, prior: Prior, values: Tensor, chunk: int, *, keep: bool) -> None:
        self._prior = prior
        self._parts = [p.detach().requires_grad_(keep) for p in torch.split(values, chunk)]
        self._graphs = [prior.decode(part) for part in self._parts]
        self.images = torch.cat([image.detach() for image in self._graphs])
        if not keep:
            self._graphs = []

    def pull(self, d_images: Tensor) -> Tensor:
        """Return the gradient in the latents of that in the images."""
        pulled: list[Tensor] = []
        for i, d_part in enumerate(torch.split(d_images, len(self._parts[0]))):
            part = self._parts[i].requires_grad_()
            image = self._graphs[i] if self._graphs else self._prior.decode(part)
            pulled += torch.autograd.grad(image, part, d_part)
        return torch.cat(pulled)


class Variables:
    """The tensors being optimised and their optimiser."""

    def __init__(
        self,
        latents: Latents,
        config: DistillConfig,
        num_classes: int,
        device: torch.device,
        spread: Tensor | None,
    ) -> None:
        self.values = latents.values.to(device).clone().requires_grad_()
        self._origin = None if latents.origin is None else latents.origin.to(device)
        self._spread = None if spread is None else spread.to(device)
        self._prior_weight = config.prior_weight
        self._hard = one_hot(latents.labels, num_classes).to(device, self.values.dtype)
        self._logits = (
            None
            if latents.label_logits is None
            else latents.label_logits.to(device).clone().requires_grad_()
        )
        # Adam moves the logarithm, so its step is a ratio; SGD moves the rate, as the paper.
        self._log = config.optimizer == "adam"
        lr = math.log(latents.student_lr) if self._log else latents.student_lr
        self._lr = torch.tensor(lr, device=device, dtype=self.values.dtype).requires_grad_()
        groups = [
            {"params": [self.values], "lr": config.latent_lr},
            {"params": [self._lr], "lr": config.student_lr_lr},
        ]
        if self._logits is not None:
            groups.append({"params": [self._logits], "lr": config.label_lr})
        self._optimizer: torch.optim.Optimizer = (
            torch.optim.Adam(groups)
            if self._log
            else torch.optim.SGD(groups, momentum=config.momentum)
        )

    def student_lr(self) -> Float[Tensor, ""]:
        """Return eta, detached."""
        value = self._lr.detach()
        return value.exp() if self._log else value.clamp_min(1e-6)

    def targets(self) -> Float[Tensor, "n k"]:
        """Return class probabilities, with a graph where they are learned."""
        return self._hard if self._logits is None else self._logits.softmax(1)

    def step(self, d_values: Tensor, targets: Tensor, grads: MatchingGradients) -> None:
        """Descend, the label gradient pulled back to the logits, the latents to their origin."""
        if self._origin is not None and self._spread is not None:
            values = self.values.detach()
            d_values = d_values + pull(values, self._origin, self._spread, self._prior_weight)
        self.values.grad = d_values
        if self._logits is not None:
            (self._logits.grad,) = torch.autograd.grad(targets, self._logits, grads.targets)
        self._lr.grad = grads.lr * self.student_lr() if self._log else grads.lr
        self._optimizer.step()

    def latents(self, labels: Tensor) -> Latents:
        """Return the variables' present values, on the CPU."""
        return Latents(
            values=self.values.detach().cpu().clone(),
            labels=labels,
            label_logits=None if self._logits is None else self._logits.detach().cpu().clone(),
            student_lr=float(self.student_lr()),
            origin=None if self._origin is None else self._origin.cpu(),
        )


def _result(
    job: DistillJob,
    bench: Bench,
    way: tuple[Latents, Latents],
    losses: list[float],
    stopped: str,
    seconds: float,
) -> DistillResult:
    start, latents = way
    of_a_class = bench.prior.conditional or has_moved(job, start, latents)
    if (not losses and stopped) or not of_a_class:
        return failed_result(job, bench, stopped or UNMOVED, seconds=seconds)
    targets = (
        one_hot(latents.labels, bench.num_classes).float()
        if latents.label_logits is None
        else latents.label_logits.softmax(1)
    )
    report = DistillReport(
        partition_id=job.partition_id,
        classes=tuple(sorted(job.images_per_class)),
        num_images=len(latents.labels),
        iterations=len(losses),
        first_loss=losses[0] if losses else math.nan,
        last_loss=losses[-1] if losses else math.nan,
        student_lr=latents.student_lr,
        seconds=seconds,
        stopped=stopped,
    )
    images = decode(bench.prior, latents.values, bench)
    return DistillResult(latents, images, targets, report)


def failed_result(
    job: DistillJob, bench: Bench, reason: str, *, seconds: float = 0.0
) -> DistillResult:
    """Return the outcome of a job that gave nothing; the client's old latents stay."""
    report = DistillReport(
        job.partition_id,
        tuple(sorted(job.images_per_class)),
        0,
        0,
        math.nan,
        math.nan,
        bench.config.student_lr,
        seconds,
        reason,
    )
    spec = bench.spec
    images = torch.empty(0, spec.channels, spec.size, spec.size)
    return DistillResult(job.latents, images, torch.empty(0, bench.num_classes), report)


@torch.no_grad()
def decode(prior: Prior, values: Tensor, bench: Bench) -> Float[Tensor, "n c h w"]:
    """Return images on the CPU, decoded a chunk at a time; about in [0, 1]."""
    parts = [prior.decode(part.to(bench.device)).cpu() for part in torch.split(values, bench.chunk)]
    return torch.cat(parts)
