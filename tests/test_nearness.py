"""Laws of the penalty that keeps latents near where the prior put them."""

import dataclasses

import pytest
import torch
import toy

from feddgm_flwr.core.algorithm import apply_round, distill_job
from feddgm_flwr.core.distillation.distill import distill_client
from feddgm_flwr.core.distillation.nearness import penalty, pull, spread_of
from feddgm_flwr.core.seeding import derive


def distilled(latents=None, **overrides):
    server = toy.server(**overrides)
    state, updates = toy.federation(server)
    job = dataclasses.replace(distill_job(updates[0], state, server.shop), latents=latents)
    return distill_client(job, server.shop.bench)


def distance(result):
    return float((result.latents.values - start()).square().mean().sqrt())


def start():
    return distilled(distill__prior_weight=1.0).latents.origin


def test_by_hand():
    """Four numbers, moved by 1, 2 and 0 spreads in channels of spread 1 and 2."""
    origin = torch.zeros(1, 2, 1, 2)
    values = torch.tensor([[[[1.0, 2.0]], [[4.0, 0.0]]]])
    spread = torch.tensor([1.0, 2.0]).view(2, 1, 1)
    assert float(penalty(values, origin, spread, 0.5)) == 0.5 * (1 + 4 + 4 + 0) / 4
    expected = torch.tensor([[[[0.25, 0.5]], [[0.25, 0.0]]]])
    assert torch.equal(pull(values, origin, spread, 0.5), expected)


def test_the_pull_is_the_penalty_s_gradient():
    rng = derive(0, "test")
    values, origin = torch.randn(2, 3, 4, 5, 5, generator=rng, dtype=torch.float64)
    spread = torch.rand(4, 1, 1, generator=rng, dtype=torch.float64) + 0.1
    values.requires_grad_()
    penalty(values, origin, spread, 0.3).backward()
    torch.testing.assert_close(values.grad, pull(values.detach(), origin, spread, 0.3))


class Uneven:
    """Samples of spread 2 in one channel and none in the other."""

    conditional, fingerprint = False, "uneven"

    def sample(self, labels, *, rng):
        values = torch.zeros(len(labels), 2, 3, 3)
        values[:, 0] = 5 + 2 * torch.randn(len(labels), 3, 3, generator=rng)
        return values

    def decode(self, latents):
        return latents

    def to(self, device):
        return self


def test_the_spread_is_the_prior_s_own_by_channel_and_never_nothing():
    spread = spread_of(Uneven(), 3, rng=derive(0, "test"))
    assert spread.shape == (2, 1, 1)
    assert spread[0].item() == pytest.approx(2, rel=0.1)
    assert 0 < spread[1].item() < 0.1


def test_the_heavier_the_nearer():
    free, light, heavy = (distance(distilled(distill__prior_weight=w)) for w in (0.0, 1.0, 100.0))
    assert free > light > heavy > 0


def test_without_a_weight_nothing_is_kept_and_nothing_moves_otherwise():
    off = distilled()
    assert off.latents.origin is None
    faint = distilled(distill__prior_weight=1e-12)
    torch.testing.assert_close(faint.images, off.images)
    assert toy.server().shop.bench.spread is None


def test_a_warm_start_is_tied_to_where_the_prior_put_it_in_its_first_round():
    first = distilled(distill__prior_weight=1.0)
    second = distilled(first.latents, distill__prior_weight=1.0)
    assert torch.equal(second.latents.origin, first.latents.origin)
    assert not torch.equal(second.latents.values, first.latents.values)


def test_new_latents_beside_old_ones_have_their_own_origin():
    server = toy.server(distill__prior_weight=1.0)
    state, updates = toy.federation(server)
    job = distill_job(updates[0], state, server.shop)
    few = distill_client(dataclasses.replace(job, images_per_class={0: 1}), server.shop.bench)
    more = distill_client(dataclasses.replace(job, latents=few.latents), server.shop.bench)
    assert torch.equal(more.latents.origin[:1], few.latents.origin)
    assert more.latents.origin.shape == more.latents.values.shape == (4, 1, 8, 8)


def test_the_origin_outlives_a_round():
    server = toy.server(distill__prior_weight=1.0)
    state, updates = toy.federation(server)
    after, _ = apply_round(state, updates, server.shop, emit=toy.quiet)
    assert all(latents.origin is not None for latents in after.latents.values())
