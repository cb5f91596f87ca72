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

The two gradients differ in that one line. Every step has a graph of its own, so a step's graph
may be kept (fast) or made again when the sweep arrives (bounded memory) without changing a bit.

Knows nothing of clients, latents, augmentation or Flower. Axes: ``n`` images, ``k`` classes,
``c h w`` one image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from feddgm_flwr.params import Params, squared_distance

StepLoss = Callable[[Params, Tensor, Tensor, int], Tensor]
"""``step_loss(params, images, targets, step)``: the student's scalar loss at a step. It must be
deterministic, since a step may be evaluated twice."""


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
    step_loss: StepLoss,
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
        Keep the graphs of this many last steps and make the others again; None keeps all.
    """
    x = images.detach().requires_grad_()
    y = targets.detach().requires_grad_()
    first_kept = 0 if kept_steps is None else max(0, steps - kept_steps)

    points = [{name: p.detach() for name, p in start.items()}]
    kept: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
    for step in range(steps):
        leaves, grads = _step_gradient(step_loss, points[-1], x, y, step, step >= first_kept)
        if step >= first_kept:
            kept[step] = leaves, grads
        step_down = torch._foreach_mul(_detached(grads), lr)
        moved = torch._foreach_sub(_detached(leaves), step_down)
        points.append(dict(zip(start, moved, strict=True)))

    end = points.pop()
    loss = endpoint_distance(end, start, target)
    scale = 2 / squared_distance(start, target)
    adjoint = torch._foreach_mul([end[k] - target[k] for k in start], scale)  # lambda_N

    d_images, d_targets, d_lr = (
        torch.zeros_like(x),
        torch.zeros_like(y),
        torch.zeros_like(lr),
    )
    for step in reversed(range(steps)):
        leaves, grads = (
            kept.pop(step)
            if step in kept
            else _step_gradient(step_loss, points[step], x, y, step, True)
        )
        d_lr -= sum(
            torch.vdot(g.detach().flatten(), v.flatten())
            for g, v in zip(grads, adjoint, strict=True)
        )
        into_params = leaves if exact and step > 0 else []
        pulled = torch.autograd.grad(
            grads, [x, y, *into_params], grad_outputs=torch._foreach_mul(adjoint, -lr)
        )
        d_images += pulled[0]
        d_targets += pulled[1]
        if into_params:
            adjoint = torch._foreach_add(adjoint, list(pulled[2:]))
    return MatchingGradients(loss, d_images, d_targets, d_lr)


def graph_bytes(step_loss: StepLoss, start: Params, images: Tensor, targets: Tensor) -> int:
    """Return the bytes that one step's graph holds on to, counted on a step that is made."""
    held: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x, y = images.detach().requires_grad_(), targets.detach().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        _step_gradient(step_loss, start, x, y, 0, True)
    return max(1, sum(held.values()))


def _step_gradient(
    step_loss: StepLoss, point: Params, x: Tensor, y: Tensor, step: int, graph: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the step's own parameter leaves and g_i, with its graph or without."""
    leaves = [p.requires_grad_() for p in _detached([*point.values()])]
    loss = step_loss(dict(zip(point, leaves, strict=True)), x, y, step)
    return leaves, list(torch.autograd.grad(loss, leaves, create_graph=graph))


def _detached(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach() for t in tensors]
