"""One client's distillation by autograd, written to be read: what speed is measured from.

Two ways to the same numbers, both eager, one client after the other, the gradient of the
*detached* unroll (TESLA):

- ``distill_plainly``, as it was published: all parameters in one flat vector, two passes. The
  first walks the student's steps and keeps where each one began, the second takes every step again
  and differentiates its gradient. Images are decoded once to look at and once more to differentiate
  (GLaD). It does what the authors' code does and none of what merely slows theirs down: no scalar
  loops, no new network a step.
- ``distill_in_one_pass``, as a good engineer would write it who has the memory: each step's graph
  is kept, so that no step is taken twice and nothing is decoded twice.

They draw the same latents, minibatches and augmentations as ``core.distillation.distill`` under
``gradient = "detached"``, so all must agree on the loss. Hard labels only.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy, one_hot

from feddgm_flwr.core.augment import Pixels, augment, is_siamese
from feddgm_flwr.core.distillation.distill import Bench, DistillJob, minibatches
from feddgm_flwr.core.params import Params
from feddgm_flwr.core.seeding import derive, derive_seed
from feddgm_flwr.core.synthetic import fresh_latents

StudentInput = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""``student_input(images, targets, step)``: the augmented minibatch of a step."""
Differentiate = Callable[
    [Bench, DistillJob, Tensor, Tensor, Tensor, StudentInput], tuple[float, Tensor, Tensor]
]
"""From bench, job, latents, targets, student's rate and ``StudentInput`` to the matching loss and
its gradients in latents and rate."""


def distill_plainly(job: DistillJob, bench: Bench, iterations: int) -> list[float]:
    """Return the matching loss before each of ``iterations`` steps on the job's fresh latents."""
    return descend(job, bench, iterations, two_passes)


def distill_in_one_pass(job: DistillJob, bench: Bench, iterations: int) -> list[float]:
    """Return the same with every step's graph kept."""
    return descend(job, bench, iterations, one_pass)


def descend(
    job: DistillJob, bench: Bench, iterations: int, differentiate: Differentiate
) -> list[float]:
    """Return the matching loss before each of ``iterations`` steps."""
    config = bench.config
    if config.labels != "hard" or job.latents is not None:
        raise ValueError(
            "the reference knows hard labels and a first round only; set distill.labels"
        )
    rng = derive(job.seed, "latents", job.server_round, job.partition_id)
    latents = fresh_latents(bench.prior, job.images_per_class, bench.num_classes, config, rng=rng)
    z = latents.values.to(bench.device).requires_grad_()
    targets = one_hot(latents.labels, bench.num_classes).to(z)
    in_logs = config.optimizer == "adam"
    first_lr = math.log(config.student_lr) if in_logs else config.student_lr
    rate = torch.tensor(first_lr, device=bench.device).requires_grad_()
    groups = [
        {"params": [z], "lr": config.latent_lr},
        {"params": [rate], "lr": config.student_lr_lr},
    ]
    optimizer = (
        torch.optim.Adam(groups) if in_logs else torch.optim.SGD(groups, momentum=config.momentum)
    )
    losses = []
    for iteration in range(iterations):
        lr = rate.detach().exp() if in_logs else rate.detach().clamp_min(1e-6)
        seen = minibatch_and_augmentation(bench, job, iteration, len(z))
        loss, z.grad, d_lr = differentiate(bench, job, z, targets, lr, seen)
        losses.append(loss)
        rate.grad = d_lr * lr if in_logs else d_lr
        optimizer.step()
    return losses


def two_passes(
    bench: Bench,
    job: DistillJob,
    z: Tensor,
    targets: Tensor,
    lr: Tensor,
    student_input: StudentInput,
) -> tuple[float, Tensor, Tensor]:
    """Return the matching loss and its gradients; walks the student's steps, then each again."""
    start, target = flatten(job.start).to(z), flatten(job.target).to(z)

    def student_gradient(flat: Tensor, x: Tensor, y: Tensor) -> Tensor:
        logits = functional_call(bench.student, unflatten(flat, job.start), (x,))
        # A second-order graph in either pass, as published, though only the second needs it.
        return torch.autograd.grad(cross_entropy(logits, y), flat, create_graph=True)[0]

    with torch.no_grad():
        images = bench.prior.decode(z)
    images = images.detach().requires_grad_()
    theta, gradient_sum = start, torch.zeros_like(start)
    begins, inputs = [], []
    for step in range(bench.config.student_steps):
        flat = theta.detach().requires_grad_()
        inputs.append(student_input(images, targets, step))
        gradient = student_gradient(flat, *inputs[-1]).detach()
        begins.append(flat)
        gradient_sum += gradient
        theta = theta - lr * gradient

    moved = (start - target).square().sum()
    away = 2 * (theta - target) / moved
    d_images = torch.zeros_like(images)
    for flat, (x, y) in zip(begins, inputs, strict=True):
        inner = -lr * away @ student_gradient(flat, x, y)
        d_images += torch.autograd.grad(inner, images)[0]
    (d_z,) = torch.autograd.grad(bench.prior.decode(z), z, d_images)
    return float((theta - target).square().sum() / moved), d_z, -(gradient_sum @ away)


def one_pass(
    bench: Bench,
    job: DistillJob,
    z: Tensor,
    targets: Tensor,
    lr: Tensor,
    student_input: StudentInput,
) -> tuple[float, Tensor, Tensor]:
    """Return the matching loss and its gradients; keeps the graph of every step's gradient."""
    names = list(job.start)
    start, target = ([side[k].to(z) for k in names] for side in (job.start, job.target))
    images = bench.prior.decode(z)
    theta, gradients = start, list[tuple[Tensor, ...]]()
    for step in range(bench.config.student_steps):
        theta = [p.detach().requires_grad_() for p in theta]
        x, y = student_input(images, targets, step)
        logits = functional_call(bench.student, dict(zip(names, theta, strict=True)), (x,))
        loss = cross_entropy(logits, y)
        gradients.append(torch.autograd.grad(loss, theta, create_graph=True))
        theta = [p.detach() - lr * g.detach() for p, g in zip(theta, gradients[-1], strict=True)]

    left = [p - q for p, q in zip(theta, target, strict=True)]
    moved = sum_of_squares([p - q for p, q in zip(start, target, strict=True)])
    along = sum(
        (2 / moved * d * sum(steps)).sum()
        for d, steps in zip(left, zip(*gradients, strict=True), strict=True)
    )
    assert isinstance(along, Tensor)
    (d_z,) = torch.autograd.grad(-lr * along, z)
    return float(sum_of_squares(left) / moved), d_z, -along.detach()


def sum_of_squares(parts: Sequence[Tensor]) -> Tensor:
    """Return the squared norm of all parts together."""
    return torch.stack([part.square().sum() for part in parts]).sum()


def minibatch_and_augmentation(
    bench: Bench, job: DistillJob, iteration: int, num_images: int
) -> StudentInput:
    """Return what a student's step sees, by the engine's own seeds."""
    config, address = bench.config, (job.server_round, job.partition_id, iteration)
    size = config.student_batch
    batches: list[Tensor] = []
    if 0 < size < num_images:
        rng = derive(job.seed, "student-batches", *address)
        batches = minibatches(num_images, size, config.student_steps, rng=rng)
    base = derive_seed(job.seed, "student-augment", *address)
    pixels = Pixels.of(bench.spec.mean, bench.spec.std)

    def student_input(images: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        if batches:
            chosen = batches[step].to(images.device)
            images, targets = images[chosen], targets[chosen]
        rng = torch.Generator().manual_seed(base + step)
        how = {"siamese": is_siamese(config.augment), "pixels": pixels}
        return augment(images, config.augment, rng=rng, **how), targets

    return student_input


def flatten(params: Params) -> Tensor:
    """Return all parameters as one vector."""
    return torch.cat([p.flatten() for p in params.values()])


def unflatten(flat: Tensor, like: Params) -> Params:
    """Return ``flat`` as parameters of the shapes of ``like``."""
    parts = torch.split(flat, [p.numel() for p in like.values()])
    return {k: part.view_as(p) for (k, p), part in zip(like.items(), parts, strict=True)}
