"""Trajectory matching: how a student's end point moves with the images it was trained on.

The student takes N gradient steps from the surrogate on the synthetic images (paper, step 3)::

    theta_{i+1} = theta_i - eta g_i,    g_i = d/d theta  loss_i(theta_i; X, Y)
    L = |theta_N - theta*|^2 / |theta_0 - theta*|^2

and L is differentiated with respect to images X, targets Y and learning rate eta by one reverse
sweep over the steps, with lambda_N = dL/d theta_N::

    dL/dX   = sum_i  d/dX < g_i, -eta lambda_{i+1} >
    dL/deta = sum_i  - < g_i, lambda_{i+1} >
    lambda_i = lambda_{i+1} - eta H_i lambda_{i+1}     (exact: through the whole unroll)
    lambda_i = lambda_{i+1}                            (detached: TESLA, as the authors' code)

The two gradients differ in that one line. Every step has a trace of its own, which may be kept
(fast) or made again when the sweep arrives (bounded memory) without changing a bit.

Knows nothing of clients, latents, augmentation or Flower, nor how a student differentiates itself
(``student``). Axes: ``n`` images, ``k`` classes,
``c h w`` one image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from feddgm_flwr.core.distillation.student import Student, Trace
from feddgm_flwr.core.params import Params, squared_distance

StepInput = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""``step_input(images, targets, step)``: what the student sees at a step, differentiable. It must
be deterministic, since a step may be evaluated twice."""


@dataclass(frozen=True)
class MatchingGradients:
    """The matching loss and its gradients.

    Attributes
    ----------
    loss
        1 where the student has not moved, 0 on the target.
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
        ``start`` equals ``target``: a client that did not move has no trajectory.
    """
    moved = squared_distance(start, target)
    if not moved > 0:
        raise ValueError(
            "the target equals the start, so there is no trajectory to match; "
            "set such a reply aside"
        )
    return squared_distance(student, target) / moved


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
    exact
        Differentiate through the whole unroll, or hold each step's start constant.
    kept_steps
        Keep the traces of this many last steps and make the others again; None keeps all.
    """
    x = images.detach().requires_grad_()
    y = targets.detach().requires_grad_()
    first_kept = 0 if kept_steps is None else steps - kept_steps

    at = {name: p.detach() for name, p in start.items()}
    walked: list[tuple[Trace, tuple[Tensor, Tensor] | None]] = []
    for step in range(steps):
        keep = step >= first_kept
        seen = step_input(x, y, step)
        gradient, trace = student.step(at, *seen, keep=keep)
        walked.append((trace, seen if keep else None))
        moved = torch._foreach_sub(list(at.values()), torch._foreach_mul(gradient, lr))
        at = dict(zip(at, moved, strict=True))

    loss = endpoint_distance(at, start, target)
    scale = 2 / squared_distance(start, target)
    adjoint = torch._foreach_mul([at[k] - target[k] for k in start], scale)  # lambda_N

    d_images, d_targets, d_lr = (torch.zeros_like(t) for t in (x, y, lr))
    for step in reversed(range(steps)):
        trace, kept = walked.pop()
        seen = kept or step_input(x, y, step)
        through = exact and step > 0
        pulled = trace.pull(torch._foreach_mul(adjoint, -lr), through=through)
        dx, dy = torch.autograd.grad(seen, (x, y), (pulled.images, pulled.targets))
        d_images += dx
        d_targets += dy
        d_lr += pulled.slope / lr
        if through and pulled.params is not None:
            adjoint = torch._foreach_add(adjoint, pulled.params)
    return MatchingGradients(loss, d_images, d_targets, d_lr)
