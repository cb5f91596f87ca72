import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Small models on many threads mostly wait for each other."""
    torch.set_num_threads(1)
