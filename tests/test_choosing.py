"""Laws of choosing among a prior's samples before any is optimised."""

import dataclasses

import pytest
import torch
import toy

from feddgm_flwr.core.algorithm import distill_job
from feddgm_flwr.core.distillation.choosing import Choosy, choose
from feddgm_flwr.core.distillation.distill import distill_client, starts
from feddgm_flwr.core.seeding import derive


def shades(*values):
    return torch.tensor(values).view(-1, 1, 1, 1)


def test_by_hand():
    """The half held best is 0.0, 0.1, 0.5 and 0.9; from 0.1, farthest is 0.9, and then 0.5."""
    images = shades(0.0, 0.1, 0.5, 0.9, 2.0, 3.0, 4.0, 5.0)
    held = torch.tensor([-2.0, -1, -3, -4, -9, -9, -9, -9])
    assert choose(images, held, 1, right=8).tolist() == [1]
    assert choose(images, held, 3, right=8).tolist() == [1, 3, 2]
    assert choose(images, held, 2, right=3).tolist() == [1, 2]
    assert choose(images, held, 2, right=0).tolist() == [1, 0]
    assert sorted(choose(images, held, 8, right=8).tolist()) == list(range(8))


class Numbered:
    """Samples that are their own number, in order."""

    conditional, fingerprint = True, "numbered"

    def sample(self, labels, *, rng):
        return torch.arange(float(len(labels))).view(-1, 1, 1, 1)

    def decode(self, latents):
        return latents

    def to(self, device):
        return self


def test_each_label_gets_samples_that_were_drawn_for_its_class():
    """The model holds what is above 2.25 for class 0, the larger the more surely."""

    def hold(images):
        shade = images.flatten()
        return torch.stack([shade, 4.5 - shade], 1)

    prior = Choosy(Numbered(), 3, lambda values: values, hold)
    labels = torch.tensor([1, 0, 1])  # 0 1 2 | 3 4 5 | 6 7 8
    assert prior.sample(labels, rng=derive(0, "test")).flatten().tolist() == [0, 5, 2]
    assert prior.conditional
    assert prior.sample(labels[:0], rng=derive(0, "test")).shape == (0, 1, 1, 1)


def job_and_bench(**overrides):
    server = toy.under(toy.server(**overrides), toy.Telling())
    state, updates = toy.federation(server)
    return distill_job(updates[0], state, server.shop), server.shop.bench


def test_one_candidate_is_the_prior_itself():
    job, bench = job_and_bench()
    assert starts(job, bench) is bench.prior


def test_chosen_starts_are_held_more_surely_by_the_client_s_model():
    """The prior mixes up the client's two classes, so that there is something to choose."""

    class Mixed(toy.Telling):
        def sample(self, labels, *, rng):
            return super().sample(torch.randint(2, labels.shape, generator=rng), rng=rng)

    job, bench = job_and_bench(distill__candidates=8, client__epochs=20)
    bench = dataclasses.replace(bench, prior=Mixed())
    labels = torch.tensor([0] * 4 + [1] * 4)
    of = dataclasses.replace(bench, config=dataclasses.replace(bench.config, candidates=1))

    def right(there):
        values = starts(job, there).sample(labels, rng=derive(0, "test"))
        pictures = toy.images([0, 1, 2]).images
        nearest = torch.cdist(values.flatten(1), pictures.flatten(1)).argmin(1)
        return float((nearest == labels).float().mean())

    assert right(bench) == 1.0
    assert right(of) < 0.8


@pytest.mark.parametrize("candidates", [1, 4])
def test_a_client_is_distilled_from_as_many_images_either_way(candidates):
    job, bench = job_and_bench(distill__candidates=candidates)
    out, again = (distill_client(job, bench) for _ in range(2))
    assert len(out.images) == 4
    assert torch.equal(out.images, again.images)
