"""Functions of tensors of fixed shapes as CUDA graphs: launched at once, not kernel by kernel.

A small network's kernels last microseconds, and Python takes longer to launch them than a GPU to
run them. Recorded and replayed they are the same kernels, and give the same bits. Knows neither
what a function does nor when recording pays.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

WARM_UPS = 3
"""Calls before a recording: libraries choose kernels and take memory, which no recording may do."""


@contextmanager
def not_collecting() -> Iterator[None]:
    """Look for no garbage meanwhile: CUDA cannot free one recording while it makes another."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class Captured(Generic[T]):
    """``function``, recorded and replayed on other tensors; it must not read a value back.

    Parameters
    ----------
    given
        Tensors on a CUDA device, of the shapes that every call has; None where there is none.
    state
        What the function changes in place. It is as before once the function is recorded.
    warm_ups
        0 where the function was called before.

    Notes
    -----
    What a call returns is overwritten by the next one.
    """

    def __init__(
        self,
        function: Callable[..., T],
        given: Sequence[Tensor | None],
        state: Sequence[Tensor] = (),
        *,
        warm_ups: int = WARM_UPS,
    ) -> None:
        self._given = [None if t is None else t.detach().clone() for t in given]
        before = [t.detach().clone() for t in state]
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(warm_ups):
                function(*self._given)
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with not_collecting(), torch.cuda.graph(self._graph):
            self._result = function(*self._given)
        with torch.no_grad():
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)

    def __call__(self, *given: Tensor | None) -> T:
        """Return what the function makes of ``given``."""
        for held, new in zip(self._given, given, strict=True):
            if held is not None and new is not None:
                held.copy_(new.detach())
        self._graph.replay()
        return self._result


class Replayed(Generic[T]):
    """``function``: called as it is at first, recorded by its second call, and then replayed.

    What holds of ``Captured`` holds here.
    """

    def __init__(self, function: Callable[..., T]) -> None:
        self._function, self._calls = function, 0
        self._captured: Captured[T] | None = None

    def __call__(self, *given: Tensor | None) -> T:
        """Return what the function makes of ``given``."""
        self._calls += 1
        if self._calls == 1:
            return self._function(*given)
        if self._captured is None:
            self._captured = Captured(self._function, given, warm_ups=0)
        return self._captured(*given)


def recording() -> bool:
    """Whether a function is being recorded: it may not look at a value, and was called before."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
