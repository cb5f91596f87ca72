"""Three clients of a linear softmax model, by torch as a device trains and by numpy apart.

Each makes full-batch steps, as many as it has epochs. Client 2 has a single class; 0 and 1 lack
one each.
"""

from collections import OrderedDict

import numpy as np
import torch
from torch import nn

from feddgm_flwr.core.images import ImageSet
from feddgm_flwr.core.local import ClientConfig, Task, Walk, walk
from feddgm_flwr.core.training import PLAIN, Rule

RNG = np.random.default_rng(0)
A = [RNG.normal(size=(n, 4)) for n in (5, 6, 7)]
Y = [np.array(y) for y in ([0, 1, 1, 0, 1], [1, 2, 2, 2, 2, 2], [0] * 7)]
STEPS = (2, 3, 1)
LR = 0.3
START = {"classifier.weight": RNG.normal(size=(3, 4)), "classifier.bias": RNG.normal(size=3)}


def tensors(params: dict) -> dict:
    """Return arrays as tensors."""
    return {name: torch.tensor(p) for name, p in params.items()}


def images(i: int) -> ImageSet:
    """Return a client's data as images of two pixels a side."""
    return ImageSet(torch.tensor(A[i]).reshape(-1, 1, 2, 2), torch.tensor(Y[i]))


def walked(i: int, task: Task, rule: Rule = PLAIN, **config) -> Walk:
    """Return how client ``i`` trains, by the device's own code."""
    layers = OrderedDict(flatten=nn.Flatten(), classifier=nn.Linear(4, 3))
    config = ClientConfig(**{"epochs": STEPS[i], "lr": LR, "batch_size": 100, **config})
    rng = torch.Generator().manual_seed(i)
    model = nn.Sequential(layers).double()
    return walk(model, images(i), task, config, rule, rng=rng, device=torch.device("cpu"))


def descended(i: int, start: dict, logit_gradient, steps: int | None = None) -> dict:
    """Return where client ``i`` ends, by numpy.

    ``logit_gradient(z, y)`` is the derivative of the images' losses by their logits.
    """
    w, b = start["classifier.weight"].copy(), start["classifier.bias"].copy()
    for _ in range(steps or STEPS[i]):
        d = logit_gradient(A[i] @ w.T + b, np.eye(3)[Y[i]]) / len(A[i])
        w, b = w - LR * d.T @ A[i], b - LR * d.sum(0)
    return {"classifier.weight": w, "classifier.bias": b}


def softmax(z: np.ndarray) -> np.ndarray:
    """Return each row's probabilities."""
    e = np.exp(z)
    return e / e.sum(1, keepdims=True)


def close(found: dict, expected: dict) -> None:
    """Compare tensors with arrays, by name."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-7, err_msg=name)
