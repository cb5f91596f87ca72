"""A step on batches of one shape as a CUDA graph: launched at once, not kernel by kernel.

A small network's kernels last microseconds, and Python takes longer to launch them than a GPU to
run them. Knows neither what a step does nor when this pays.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Step = Callable[..., Tensor]
"""Takes a batch's tensors, changes others in place, and returns a number."""

WARM_UPS = 3
"""Steps before the recording: libraries choose kernels and take memory, which no graph may do."""


class Captured:
    """``step``, recorded once and replayed on other batches; it must not read a value back.

    Parameters
    ----------
    batch
        Tensors on a CUDA device, of the shapes that every batch has; None where there is none.
    state
        What the step changes in place. It is as before once the step is recorded.

    Notes
    -----
    What a call returns is overwritten by the next one.
    """

    def __init__(self, step: Step, batch: Sequence[Tensor | None], state: Sequence[Tensor]) -> None:
        self._batch = [None if t is None else t.clone() for t in batch]
        before = [t.detach().clone() for t in state]
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                step(*self._batch)
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._result = step(*self._batch)
        with torch.no_grad():
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)

    def __call__(self, *batch: Tensor | None) -> Tensor:
        """Return what the step makes of ``batch``."""
        for held, given in zip(self._batch, batch, strict=True):
            if held is not None and given is not None:
                held.copy_(given)
        self._graph.replay()
        return self._result
