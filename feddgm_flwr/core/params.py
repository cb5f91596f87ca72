"""Parameters as one named, ordered mapping, and the few sums over it that matching needs.

``Params`` keeps the module's own order; nothing is ever flattened. Knows no model.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

Params = dict[str, Tensor]
"""Name -> tensor, in ``module.named_parameters()`` order."""


def params_of(module: nn.Module) -> Params:
    """Return detached copies of ``module``'s parameters."""
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def load_params(module: nn.Module, params: Params) -> None:
    """Copy ``params`` into ``module``; names and shapes must match."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(params[name])


def on(device: torch.device, params: Params) -> Params:
    """Return ``params`` on ``device``."""
    return {name: p.to(device) for name, p in params.items()}


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return sixteen hex digits that change with any name, shape, type or bit of ``tensors``."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def dot(a: Params, b: Params) -> Float[Tensor, ""]:
    """Return the inner product over all parameters."""
    return torch.stack([(a[k] * b[k]).sum() for k in a]).sum()


def squared_distance(a: Params, b: Params) -> Float[Tensor, ""]:
    """Return ``|a - b|^2`` over all parameters."""
    return torch.stack([(a[k] - b[k]).square().sum() for k in a]).sum()


def norm(params: Params) -> float:
    """Return the Euclidean norm, summed in float64: a lie may be beyond float32's squares."""
    wide = {k: v.double() for k, v in params.items()}
    return math.sqrt(float(dot(wide, wide)))


def distance(a: Params, b: Params) -> float:
    """Return the Euclidean distance; subtracted in float64 too."""
    return norm({k: a[k].double() - b[k].double() for k in a})


def weighted_mean(many: Sequence[Params], weights: Sequence[float | int]) -> Params:
    """Return ``sum_i w_i params_i / sum_i w_i`` (FedAvg's aggregate)."""
    total = float(sum(weights))
    first = many[0]
    return {
        k: torch.stack([p[k] * (w / total) for p, w in zip(many, weights, strict=True)]).sum(0)
        for k in first
    }


def all_finite(value: object) -> bool:
    """Whether no tensor and no number in nested mappings and lists is NaN or infinite."""
    if isinstance(value, Tensor):
        return bool(torch.isfinite(value).all())
    if isinstance(value, Mapping):
        return all(map(all_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(all_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def blend(a: Params, b: Params, share: float) -> Params:
    """Return ``(1 - share) a + share b``."""
    return {name: torch.lerp(a[name], b[name], share) for name in a}
