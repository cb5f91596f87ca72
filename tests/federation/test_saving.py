"""Laws of insisting: it ends, with what is written or with one sentence."""

import logging
from pathlib import Path

import pytest

from feddgm_flwr.federation import saving


class Disk:
    """Refuses the first ``times`` calls."""

    def __init__(self, times):
        self.left, self.calls = times, 0

    def __call__(self):
        self.calls += 1
        if self.calls <= self.left:
            raise OSError(28, "No space left on device")


def test_what_can_be_written_is_written_once_and_nothing_is_said(caplog):
    caplog.set_level(logging.INFO)
    disk = Disk(0)
    saving.insist(disk, "the models", Path("/run"))
    assert (disk.calls, caplog.text) == (1, "")


def test_a_disk_that_refuses_is_named_once_and_so_is_its_change_of_mind(caplog):
    caplog.set_level(logging.INFO)
    disk = Disk(3)
    saving.insist(disk, "the models", Path("/run"))
    first, last = (r.getMessage() for r in dict.fromkeys(caplog.records))
    assert first.startswith(
        "the models cannot be written to out-dir '/run' (No space left on device); make room there"
    )
    assert last == "the models: written after all"


def test_it_gives_up_with_the_remedy():
    disk = Disk(10**6)
    with pytest.raises(saving.UnsavedError, match=r"the models cannot .* go on with resume = true"):
        saving.insist(disk, "the models", Path("/run"))
    assert disk.calls == saving.TRIES


def test_what_is_no_fault_of_the_disk_is_not_tried_again():
    def broken():
        raise KeyError("w")

    with pytest.raises(KeyError):
        saving.insist(broken, "the models", Path("/run"))
