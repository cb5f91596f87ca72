"""Functions through torch's compiler: one kernel a shape, kept by this process.

Knows neither what it compiles nor whether there is a compiler (``feddgm_flwr.compiler`` asks).
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Return ``function`` compiled at its first call of each shape, which takes seconds.

    What was compiled belongs to the function's code: another closure of the same code, or another
    model of the same shape among its arguments, finds it ready.
    """
    # A kernel a shape, so that no result depends on the shapes that this process saw before.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    return cast(F, torch.compile(function, dynamic=False))
