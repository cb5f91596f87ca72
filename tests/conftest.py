"""What every test runs under: one thread, and GPU tests only where there is a GPU."""

import logging
from importlib import import_module, util

import pytest
import torch


def pytest_configure(config):
    # Small models are many times slower when threads of parallel workers fight for cores.
    torch.set_num_threads(1)
    # Later releases of Flower make no message but in a process of their own, which says who it is.
    identity = "flwr.supercore.task_identity"
    if util.find_spec(identity):
        task = import_module(identity).TaskIdentity
        task.run_id, task.node_id, task.task_id = 1, 1, 1


def pytest_collection_modifyitems(config, items):
    if torch.cuda.is_available():
        return
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu:
        config.hook.pytest_deselected(items=gpu)
        items[:] = [item for item in items if item not in set(gpu)]


@pytest.fixture(autouse=True)
def _log_as_it_was():
    """Undo what a whole run does to this package's logger, or later tests hear nothing of it."""
    logger = logging.getLogger("feddgm_flwr")
    handlers, propagate, level = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture(autouse=True)
def _no_wait_for_a_disk(monkeypatch):
    """A test's disk that refuses for ever would be waited for half an hour."""
    monkeypatch.setattr("feddgm_flwr.federation.saving.AGAIN_S", 0.0)
