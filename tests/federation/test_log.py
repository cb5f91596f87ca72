"""Laws of what is said of an end: one sentence, and a traceback only where code is to blame."""

import logging

import pytest

from feddgm_flwr.federation.log import FATES, said_plainly


@pytest.fixture
def flowers():
    """Return the records that Flower's log shows, and let nothing of this test stay there."""
    logger, records = logging.getLogger("flwr"), []
    handler = logging.Handler()
    handler.emit = records.append
    filters = logger.filters[:]
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)
    logger.filters[:] = filters


def ended_by(error):
    """Let Flower log an error as it does of a ServerApp's."""
    for _ in range(2):  # runs in one process
        try:
            with said_plainly():
                raise error
        except Exception as raised:
            logging.getLogger("flwr").error("ServerApp raised an exception", exc_info=raised)


@pytest.mark.parametrize("fate", FATES)
def test_a_fate_is_told_without_a_traceback(fate, flowers, caplog):
    ended_by(fate("the disk is full"))
    assert "this run cannot go on: the disk is full" in caplog.text
    assert [(r.getMessage(), r.exc_info) for r in flowers if r.name == "flwr"] == [
        ("ServerApp raised an exception", None)
    ] * 2


@pytest.mark.parametrize("error", [ValueError, RuntimeError])
def test_what_may_be_a_fault_of_the_code_keeps_its_traceback(error, flowers):
    ended_by(error("no such key"))
    told = [r for r in flowers if r.name == "flwr"]
    assert [r.exc_info[0] for r in told] == [error] * 2
