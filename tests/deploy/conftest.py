"""One federation for all drills and refusals: each test sees to the nodes that it needs."""

import pytest
from federation import Federation


@pytest.fixture(scope="session")
def federation(tmp_path_factory):
    it = Federation(tmp_path_factory.mktemp("federation"), nodes=4)
    try:
        yield it
    finally:
        it.close()
