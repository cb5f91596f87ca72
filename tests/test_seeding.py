"""Randomness with an address: every part of it counts, and nothing else does."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from feddgm_flwr.core.seeding import derive, derive_seed

NUMBERS = st.integers(0, 2**40)
ADDRESSES = st.tuples(NUMBERS, st.text(max_size=8), st.lists(NUMBERS, max_size=3))


@given(ADDRESSES)
def test_a_seed_is_of_63_bits_and_the_same_every_time(address):
    seed, purpose, rest = address
    found = derive_seed(seed, purpose, *rest)
    assert 0 <= found < 2**63
    assert derive_seed(seed, purpose, *rest) == found


@pytest.mark.parametrize(
    "other",
    [
        (1, "latents", 2, 3),
        (0, "latent", 2, 3),
        (0, "latents", 3, 2),
        (0, "latents", 2),
        (0, "latents", 2, 4),
        (0, "latents", 2, 3, 1),
    ],
    ids=["seed", "purpose", "order", "shorter", "last", "longer"],
)
def test_every_part_of_an_address_counts(other):
    assert derive_seed(*other) != derive_seed(0, "latents", 2, 3)


def test_ten_thousand_clients_over_rounds_have_seeds_of_their_own():
    seeds = {derive_seed(0, "latents", r, p) for r in range(10) for p in range(1000)}
    assert len(seeds) == 10_000


def test_a_generator_gives_the_numbers_of_its_seed_on_the_cpu():
    generator = derive(3, "client", 1, 2)
    assert generator.device.type == "cpu"
    same = torch.Generator().manual_seed(derive_seed(3, "client", 1, 2))
    assert torch.equal(torch.rand(4, generator=generator), torch.rand(4, generator=same))


def test_generators_are_apart_and_leave_global_randomness_alone():
    before = torch.get_rng_state()
    first, again = derive(0, "client", 1), derive(0, "client", 1)
    torch.rand(100, generator=derive(0, "client", 2))
    drawn = torch.rand(4, generator=first)
    assert torch.equal(drawn, torch.rand(4, generator=again))
    assert torch.equal(torch.get_rng_state(), before)
