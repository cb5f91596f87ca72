"""A reply proves which classes its client owns."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from feddgm_flwr.core.local import ClientConfig
from feddgm_flwr.core.ownership import owned_classes
from feddgm_flwr.core.params import params_of
from feddgm_flwr.core.training import train


class Student(nn.Module):
    """Non-negative features under a linear classifier, like the surrogate."""

    def __init__(self):
        super().__init__()
        self.features = nn.Linear(8, 16)
        self.classifier = nn.Linear(16, 6)

    def forward(self, x):
        return self.classifier(self.features(x.flatten(1)).relu())


def trained(labels, seed, **config):
    torch.manual_seed(seed)
    student = Student()
    start = params_of(student)
    centres = torch.randn(6, 1, 1, 8)
    images = centres[labels] + 0.3 * torch.randn(len(labels), 1, 1, 8)
    settings_ = ClientConfig(epochs=3, batch_size=8, **config)
    train(student, images, labels, settings_, rng=torch.Generator().manual_seed(seed))
    return start, params_of(student)


@settings(max_examples=20, deadline=None)
@given(
    st.sets(st.integers(0, 5), min_size=1),
    st.integers(0, 1000),
    st.sampled_from([0.0, 0.9]),
)
def test_inferred_classes_are_the_owned_ones(classes, seed, momentum):
    labels = torch.tensor(sorted(classes)).repeat_interleave(10)
    start, reply = trained(labels, seed, momentum=momentum, lr=0.05)
    assert owned_classes(start, reply, None) == tuple(sorted(classes))


def test_weight_decay_is_not_taken_for_ownership():
    labels = torch.tensor([1, 4]).repeat_interleave(20)
    start, reply = trained(labels, 0, lr=0.05, weight_decay=0.01)
    steps = 3 * 5
    assert owned_classes(start, reply, None, shrink=0.05 * 0.01 * steps) == (1, 4)


@pytest.mark.parametrize("counts", [(0, 3, 0, 0, 1, 0), (1, 0, 0, 0, 0, 0)])
def test_shared_counts_win(counts):
    start, reply = trained(torch.tensor([1, 4] * 10), 0, lr=0.05)
    expected = tuple(k for k, n in enumerate(counts) if n)
    assert owned_classes(start, reply, counts) == expected
