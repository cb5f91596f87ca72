"""Freed memory stays with the process, and goes back when it is told to."""

import subprocess
import sys

import pytest

PROBE = """
import resource, torch
from feddgm_flwr.core.memory import kept_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2 ** 22)  # 16 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1])

torch.set_num_threads(1)
with kept_memory():
    faults()
    inside = faults()
    held = resident()
print(inside, held - resident())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="what glibc does")
def test_freed_memory_is_used_again_and_handed_back_at_the_end():
    command = [sys.executable, "-c", PROBE]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    inside, given_back = map(int, said.stdout.split())
    pages = 2**24 // 4096
    assert inside < pages  # ten tensors, not one of them of new pages
    assert given_back > pages // 2


def test_without_glibc_nothing_happens(monkeypatch):
    from feddgm_flwr.core import memory

    monkeypatch.setattr(memory, "_glibc", lambda: None)
    with memory.kept_memory():
        pass
