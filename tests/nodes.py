"""A Ray cluster of two nodes on this machine, for the tests that distill or simulate over one."""

import gc
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def two_nodes() -> Iterator[str]:
    """The address of a cluster of two nodes, a CPU each, while the context lasts."""
    import ray

    with pytest.MonkeyPatch.context() as patch, ignored_resources():
        patch.delenv("RAY_ADDRESS", raising=False)
        if " " in sys.executable:  # Ray hands it to a shell as it is
            home = Path(tempfile.mkdtemp()) / "python"
            home.symlink_to(Path(sys.executable).parents[1])
            patch.setattr(sys, "executable", str(home / "bin" / Path(sys.executable).name))
        # The nodes' workers unpickle what tests define.
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        cluster = started()
        cluster.add_node(num_cpus=1)
    try:
        yield cluster.address
    finally:
        with ignored_resources():
            ray.shutdown()
            cluster.shutdown()
            del cluster
            gc.collect()


def started(attempts: int = 3) -> Any:
    """A cluster of one node; tried again, as Ray's 30 s are too short for a disk not yet read."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False}
    for _ in range(attempts - 1):
        with suppress(Exception, SystemExit):
            return Cluster(initialize_head=True, head_node_args=head)
    return Cluster(initialize_head=True, head_node_args=head)


@contextmanager
def ignored_resources() -> Iterator[None]:
    """Ray leaves the files and processes of its servers to the garbage collector."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield
