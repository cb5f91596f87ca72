"""Trajectory matching: how a student's path moves with the images it was trained on.

The student takes N gradient steps from the surrogate on the synthetic images (paper, step 3), and
should pass W waypoints theta*_w, each at its step w, the last at step N::

    theta_{i+1} = theta_i - eta g_i,    g_i = d/d theta  loss_i(theta_i; X, Y)
    L = 1/W sum_w  D(theta_w, theta_0, theta*_w)

The paper has N as its one waypoint and D = |theta_N - theta*|^2 / |theta_0 - theta*|^2. L is
differentiated with respect to images X, targets Y and learning rate eta by one reverse sweep over
the steps, which starts from lambda_N = p_N and adds the pull of each waypoint on its way::

    p_i     = 1/W  d/d theta_i  D(theta_i, theta_0, theta*_i)     (0 where there is no waypoint)
    dL/dX   = sum_i  d/dX < g_i, -eta lambda_{i+1} >
    dL/deta = sum_i  - < g_i, lambda_{i+1} >
    lambda_i = lambda_{i+1} - eta H_i lambda_{i+1} + p_i     (exact: through the whole unroll)
    lambda_i = lambda_{i+1} + p_i                            (detached: TESLA, as the authors' code)

The two gradients differ in that one line. Every step has a trace of its own, which may be kept
(fast) or made again when the sweep arrives (bounded memory) without changing a bit.

Knows nothing of clients, latents, augmentation or Flower, nor how a student differentiates itself
(``student``) or where waypoints come from. Axes: ``n`` images, ``k`` classes, ``c h w`` one image.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from feddgm_flwr.core.capturing import recording
from feddgm_flwr.core.distillation.student import Student, Trace
from feddgm_flwr.core.params import Params, dot, squared_distance

LEAST_RATE = 1e-12
"""A smaller student learning rate is applied after the pull, not before."""

StepInput = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""``step_input(images, targets, step)``: what the student sees at a step, differentiable. It must
be deterministic, since a step may be evaluated twice."""

Distance = Callable[[Params, Params, Params], Float[Tensor, ""]]
"""``distance(student, start, target)``: 1 at the start, 0 on the target, differentiable in the
student. It raises ValueError where the start equals the target."""


@dataclass(frozen=True)
class MatchingGradients:
    """The matching loss and its gradients.

    Attributes
    ----------
    loss
        Mean distance over the waypoints: 1 where the student has not moved, 0 on all of them.
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
    return squared_distance(student, target) / _squared_length(start, target)


def cosine_distance(student: Params, start: Params, target: Params) -> Float[Tensor, ""]:
    """Return one minus the cosine between ``student - start`` and ``target - start``.

    How far the student went does not count. One that has not moved has no direction: it is given
    1, as a student at right angles to the target, and no gradient.

    Raises
    ------
    ValueError
        ``start`` equals ``target``.
    """
    length = _squared_length(start, target).sqrt()
    a, b = ({k: p[k] - start[k] for k in start} for p in (student, target))
    moved, along = dot(a, a), dot(a, b)
    # Masked before the root and the quotient: behind them the gradient would be NaN already.
    still = moved == 0
    lengths = torch.where(still, 1, moved).sqrt() * length
    # One quotient, so that lengths that overflow give NaN, which is reported, and not a quiet 1.
    return (lengths - torch.where(still, 0, along)) / lengths


DISTANCES: Mapping[str, Distance] = {"endpoint": endpoint_distance, "cosine": cosine_distance}
"""By the name that ``distill.distance`` gives them."""


def matching_gradients(
    student: Student,
    step_input: StepInput,
    start: Params,
    waypoints: Mapping[int, Params],
    images: Float[Tensor, "n c h w"],
    targets: Float[Tensor, "n k"],
    lr: Float[Tensor, ""],
    *,
    steps: int,
    exact: bool,
    distance: Distance = endpoint_distance,
    kept_steps: int | None = None,
) -> MatchingGradients:
    """Return the matching loss of ``steps`` student steps and its gradients.

    Parameters
    ----------
    waypoints
        Student step (1 to ``steps``) -> where the student should be after it; one for ``steps``.
    exact
        Differentiate through the whole unroll, or hold each step's start constant.
    kept_steps
        Keep the traces of this many last steps and make the others again; None keeps all.

    Raises
    ------
    ValueError
        A waypoint at no step, none at the last one, or one that equals the start.
    """
    if not waypoints or min(waypoints) < 1 or max(waypoints) != steps:
        raise ValueError(
            f"waypoints must lie at student steps 1 to {steps}, one of them at {steps}, "
            f"got {sorted(waypoints)}; place them anew"
        )
    x = images.detach().requires_grad_()
    y = targets.detach().requires_grad_()
    first_kept = 0 if kept_steps is None else steps - kept_steps
    unit, part = _unit(lr)

    at = {name: p.detach() for name, p in start.items()}
    walked: list[tuple[Trace, tuple[Tensor, Tensor] | None]] = []
    passed: dict[int, Params] = {}
    for step in range(steps):
        keep = step >= first_kept
        seen = step_input(x, y, step)
        gradient, trace = student.step(at, *seen, keep=keep)
        walked.append((trace, seen if keep else None))
        moved = torch._foreach_sub(list(at.values()), torch._foreach_mul(gradient, lr))
        at = dict(zip(at, moved, strict=True))
        if step + 1 in waypoints:
            passed[step + 1] = at

    loss, pulls = _mean_distance(distance, passed, start, waypoints)
    adjoint = pulls[steps]  # lambda_N
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
        if step in pulls:
            adjoint = torch._foreach_add(adjoint, pulls[step])
    return MatchingGradients(loss, d_images, d_targets, d_lr)


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


def _squared_length(start: Params, target: Params) -> Float[Tensor, ""]:
    """Return ``|start - target|^2``, or raise: who did not move has no trajectory."""
    length = squared_distance(start, target)
    if not recording() and not length > 0:
        raise ValueError(
            "the target equals the start, so there is no trajectory to match; "
            "set such a reply aside"
        )
    return length


def _mean_distance(
    distance: Distance,
    passed: Mapping[int, Params],
    start: Params,
    waypoints: Mapping[int, Params],
) -> tuple[Float[Tensor, ""], dict[int, tuple[Tensor, ...]]]:
    """Return the mean distance over the steps of ``passed``, and its gradient in each (p_i)."""
    leaves = {
        step: {name: p.detach().requires_grad_() for name, p in at.items()}
        for step, at in passed.items()
    }
    away = [distance(at, start, waypoints[step]) for step, at in leaves.items()]
    loss = torch.stack(away).mean()
    pulls = torch.autograd.grad(loss, [p for at in leaves.values() for p in at.values()])
    each = iter(pulls)
    return loss.detach(), {step: tuple(next(each) for _ in at) for step, at in leaves.items()}
