"""Trajectory matching: how the end of a student's path moves with the images it was trained on.

The student takes N gradient steps from the surrogate on the synthetic images (paper, step 3), and
should end where the client did::

    theta_{i+1} = theta_i - eta g_i,    g_i = d/d theta  loss_i(theta_i; X, Y)
    L = |theta_N - theta*|^2 / |theta_0 - theta*|^2

L is differentiated with respect to images X, targets Y and learning rate eta by one reverse sweep
over the steps, from lambda_N = dL/d theta_N::

    dL/dX   = sum_i  d/dX < g_i, -eta lambda_{i+1} >
    dL/deta = sum_i  - < g_i, lambda_{i+1} >
    lambda_i = lambda_{i+1} - eta H_i lambda_{i+1}           (exact: through the whole unroll)
    lambda_i = lambda_{i+1}                                  (detached: TESLA, as the authors' code)

The two gradients differ in that one line. Every step has a trace of its own, which may be kept
(fast) or made again when the sweep arrives (bounded memory) without changing a bit.

Knows nothing of clients, latents, augmentation or Flower, nor how a student differentiates itself
(``student``). Axes: ``n`` images, ``k`` classes, ``c h w`` one image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from feddgm_flwr.core.capturing import recording
from feddgm_flwr.core.distillation.student import Student, Trace
from feddgm_flwr.core.params import Params, squared_distance

LEAST_RATE = 1e-12
"""A smaller student learning rate is applied after the pull, not before."""

StepInput = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""``step_input(images, targets, step)``: what the student sees at a step, differentiable. It must
be deterministic, since a step may be evaluated twice."""


@dataclass(frozen=True)
class MatchingGradients:
    """The matching loss and its gradients.

    Attributes
    ----------
    loss
        1 where the student has not moved, 0 where it ends at the target.
    images, targets, lr
        dL/dX, dL/dY, dL/deta.
    """

    loss: Float[Tensor, ""]
    images: Float[Tensor, "n c h w"]
    targets: Float[Tensor, "n k"]
    lr: Float[Tensor, ""]


def endpoint_distance(student: Params, start: Params, target: Params) -> Float[Tensor, ""]:
    """Return ``|student - target|^2 / |start - target|^2``.

    Raises
    ------
    ValueError
        ``start`` equals ``target``.
    """
    length = squared_distance(start, target)
    if not recording() and not length > 0:
        raise ValueError(
            "the target equals the start, so there is no trajectory to match; "
            "set such a reply aside"
        )
    return squared_distance(student, target) / length


def matching_gradients(
    student: Student,
    step_input: StepInput,
    start: Params,
    target: Params,
    images: Float[Tensor, "n c h w"],
    targets: Float[Tensor, "n k"],
    lr: Float[Tensor, ""],
    *,
    steps: int,
    exact: bool,
    kept_steps: int | None = None,
) -> MatchingGradients:
    """Return the matching loss of ``steps`` student steps and its gradients.

    Parameters
    ----------
    target
        Where the student should end.
    exact
        Differentiate through the whole unroll, or hold each step's start constant.
    kept_steps
        Keep the traces of this many last steps and make the others again; None keeps all.

    Raises
    ------
    ValueError
        ``start`` equals ``target``.
    """
    x = images.detach().requires_grad_()
    y = targets.detach().requires_grad_()
    first_kept = 0 if kept_steps is None else steps - kept_steps
    unit, part = _unit(lr)

    at = {name: p.detach() for name, p in start.items()}
    walked: list[tuple[Trace, tuple[Tensor, Tensor] | None]] = []
    for step in range(steps):
        keep = step >= first_kept
        seen = step_input(x, y, step)
        gradient, trace = student.step(at, *seen, keep=keep)
        walked.append((trace, seen if keep else None))
        moved = torch._foreach_sub(list(at.values()), torch._foreach_mul(gradient, lr))
        at = dict(zip(at, moved, strict=True))

    end = {name: p.detach().requires_grad_() for name, p in at.items()}
    loss = endpoint_distance(end, start, target)
    # A distance may leave out some of the parameters.
    adjoint = torch.autograd.grad(
        loss, list(end.values()), allow_unused=True, materialize_grads=True
    )  # lambda_N
    d_images, d_targets, d_lr = (torch.zeros_like(t) for t in (x, y, lr))
    for step in reversed(range(steps)):
        trace, kept = walked.pop()
        seen = kept or step_input(x, y, step)
        through = exact and step > 0
        pulled = trace.pull(torch._foreach_mul(adjoint, -unit), through=through)
        dx, dy = torch.autograd.grad(seen, (x, y), (pulled.images, pulled.targets))
        d_images.add_(dx, alpha=part)
        d_targets.add_(dy, alpha=part)
        d_lr += pulled.slope / unit
        if through and pulled.params is not None:
            adjoint = torch._foreach_add(adjoint, pulled.params, alpha=part)
    return MatchingGradients(loss.detach(), d_images, d_targets, d_lr)


def _unit(lr: Float[Tensor, ""]) -> tuple[Float[Tensor, ""], float]:
    """Return the rate to pull with, and which part of it ``lr`` is.

    Elsewhere the two are ``lr`` and 1. The slope <g, lambda> does not depend on the rate, but
    cannot be had by dividing by a rate of zero, or by one so small that it rounds the pull away.
    """
    if recording():
        return lr, 1.0  # no rate that took a step is so small
    # The one look of the call: asking a GPU at every step would make it wait.
    rate = float(lr.detach())
    return (lr, 1.0) if abs(rate) >= LEAST_RATE else (torch.ones_like(lr), rate)
