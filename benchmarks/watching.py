"""Watches a benchmark from a thread: the memory of all its processes, how busy a GPU is.

No claim; what others measure with. Linux only where memory is not a GPU's (/proc).
"""

import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import torch

NVIDIA_SMI = ("nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits")


class Watch:
    """Calls ``look`` at the start, every so often and at the end of a ``with``."""

    def __init__(self, look: Callable[[], float], every_s: float) -> None:
        self._look, self._every_s = look, every_s
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self.seen: list[float] = []

    def __enter__(self) -> Self:
        self.seen.append(self._look())  # what cannot be looked at says so here
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()
        self.seen.append(self._look())

    def _watch(self) -> None:
        while not self._done.wait(self._every_s):
            self.seen.append(self._look())


class PeakMemory(Watch):
    """The largest memory of this process and all that come from it, or of the GPU.

    Proportional set size: pages that processes share, torch's own code above all, count once.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(_cuda_mb if device.type == "cuda" else _family_mb, 0.5)

    @property
    def mb(self) -> float:
        """In MiB."""
        return max(self.seen)


class Utilisation(Watch):
    """How busy nvidia-smi says a GPU is."""

    def __init__(self, device: torch.device) -> None:
        index = device.index or 0

        def look() -> float:
            said = subprocess.run(NVIDIA_SMI, capture_output=True, text=True, check=True)
            return float(said.stdout.split()[index])

        super().__init__(look, 1.0)

    @staticmethod
    def known(device: torch.device) -> bool:
        """Whether there is anybody to ask."""
        return device.type == "cuda" and shutil.which(NVIDIA_SMI[0]) is not None

    @property
    def percent(self) -> float:
        """The mean."""
        return sum(self.seen) / len(self.seen)


def proc_mb(file: str, key: str) -> float:
    """Return a size that a file under /proc names, in MiB."""
    for line in Path("/proc", file).read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/{file} has no {key}; this benchmark needs Linux")


def _cuda_mb() -> float:
    return torch.cuda.max_memory_allocated() / 2**20


def _family_mb() -> float:
    total = proc_mb("self/smaps_rollup", "Pss")
    for pid in _descendants(os.getpid()):
        with suppress(OSError):  # it has ended
            total += proc_mb(f"{pid}/smaps_rollup", "Pss")
    return total


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            parent = int(stat.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = list(children.get(pid, []))
    for member in found:
        found += children.get(member, [])
    return found
