"""Laws of one client's distillation."""

import dataclasses
import math

import pytest
import torch
import toy

from feddgm_flwr.core.algorithm import distill_job
from feddgm_flwr.core.distillation.distill import (
    converged,
    distill_client,
    minibatches,
)
from feddgm_flwr.core.params import all_finite
from feddgm_flwr.core.synthetic import LOGIT_SCALE


def result(progress=None, **overrides):
    server = toy.server(**overrides)
    state, updates = toy.federation(server)
    return distill_client(
        distill_job(updates[0], state, server.shop), server.shop.bench, progress=progress
    )


@pytest.mark.parametrize("gradient", ["exact", "detached"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_descent_lowers_the_matching_loss(gradient, optimizer):
    rates = {"adam": {}, "sgd": {"distill__latent_lr": 5.0, "distill__student_lr_lr": 1e-4}}
    out = result(
        distill__gradient=gradient,
        distill__optimizer=optimizer,
        distill__iterations=20,
        **rates[optimizer],
    )
    assert out.report.last_loss < 0.75 * out.report.first_loss


def test_soft_labels_are_learned_and_stay_probabilities():
    hard, soft = result(), result(distill__labels="soft")
    torch.testing.assert_close(soft.targets.sum(1), torch.ones(len(soft.targets)))
    assert set(hard.targets.unique().tolist()) == {0.0, 1.0}
    assert soft.latents.label_logits.argmax(1).tolist() == [0, 0, 1, 1]
    start = (LOGIT_SCALE * hard.targets).softmax(1)
    assert soft.targets.shape == start.shape
    assert not torch.equal(soft.targets, start)


def test_student_learning_rate_is_learned_or_fixed():
    assert result().report.student_lr != pytest.approx(0.02)
    assert result(distill__student_lr_lr=0.0).report.student_lr == pytest.approx(0.02)


def test_memory_budget_changes_no_bit():
    free, bounded = result(), result(distill__memory_budget_mb=1, distill__student_batch=2)
    assert not torch.equal(free.images, bounded.images)  # another batch, another problem
    free = result(distill__student_batch=2)
    assert torch.equal(free.images, bounded.images)


def test_minibatches_pass_over_all_images_in_seeded_epochs():
    batches = minibatches(7, 3, 4, rng=torch.Generator().manual_seed(0))
    assert [len(b) for b in batches] == [3] * 4
    for epoch in (batches[:2], batches[2:]):
        assert len(torch.cat(epoch).unique()) == 6


def test_converged_needs_a_flat_stretch_and_a_tolerance():
    falling, flat = [1 / (i + 1) for i in range(20)], [1.0] * 20
    assert converged(flat, 0.01)
    assert not converged(falling, 0.01)
    assert not converged(flat, 0.0)
    assert not converged(flat[:9], 0.01)


def test_early_stop_is_reported():
    out = result(distill__stop_tolerance=0.9, distill__iterations=30)
    assert out.report.stopped == "converged"
    assert out.report.iterations < 30


def test_a_target_that_is_not_finite_is_given_up_with_the_reason():
    server = toy.server()
    state, updates = toy.federation(server)
    job = distill_job(updates[0], state, server.shop)
    broken = {k: torch.full_like(v, 1e30) for k, v in job.target.items()}
    out = distill_client(dataclasses.replace(job, target=broken), server.shop.bench)
    assert "non-finite matching loss" in out.report.stopped
    assert math.isnan(out.report.last_loss)
    assert len(out.images) == 0


def test_a_reply_that_proves_no_class_is_given_up_with_the_reason():
    server = toy.server(distill__labels="soft")
    state, updates = toy.federation(server)
    fallen = {k: v - 1 for k, v in state.surrogate.items()}
    job = distill_job(dataclasses.replace(updates[0], params=fallen), state, server.shop)
    assert job.images_per_class == {}
    out = distill_client(job, server.shop.bench)
    assert "proves no class" in out.report.stopped
    assert out.latents is None
    assert (len(out.images), len(out.targets), out.report.iterations) == (0, 0, 0)


def test_a_reply_that_is_what_was_sent_is_given_up_with_the_reason():
    server = toy.server(distill__classes="all")
    state, updates = toy.federation(server)
    still = dataclasses.replace(updates[0], params=state.surrogate)
    out = distill_client(distill_job(still, state, server.shop), server.shop.bench)
    assert "no trajectory to match" in out.report.stopped
    assert len(out.images) == 0


def test_augmentation_is_siamese_and_seeded():
    plain, first, again = (result(distill__augment=a) for a in ("", "scale", "scale"))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(plain.images, first.images)


def test_progress_is_told_at_every_iteration():
    seen = []
    out = result(lambda i, n, loss, glimpse: seen.append((i, n)))
    assert seen == [(i + 1, 6) for i in range(6)]
    assert out.report.iterations == 6


def test_a_last_step_that_leaves_nothing_finite_is_taken_back():
    """With the student's rate under SGD it can run away; the next round would begin from NaN."""
    server = toy.under(
        toy.server(distill__optimizer="sgd", distill__student_lr_lr=1e38, distill__iterations=1),
        toy.Telling(),
    )
    state, updates = toy.federation(server)
    result = distill_client(distill_job(updates[0], state, server.shop), server.shop.bench)
    assert all_finite(vars(result.latents))
    assert torch.isfinite(result.images).all()


@pytest.mark.parametrize("still", [{"distill__iterations": 0}, {"distill__latent_lr": 0.0}])
def test_bare_samples_count_as_pictures_only_of_a_prior_that_knows_the_classes(still):
    server = toy.server(**still)
    state, updates = toy.federation(server)
    job = distill_job(updates[0], state, server.shop)
    unknowing = distill_client(job, server.shop.bench)
    assert len(unknowing.images) == 0
    assert unknowing.latents is None
    assert "bare samples of a prior that knows no class" in unknowing.report.stopped
    telling = distill_client(job, toy.under(server, toy.Telling()).shop.bench)
    assert len(telling.images) == 4


def test_latents_of_a_former_round_are_no_bare_samples():
    server = toy.server(distill__warm_iterations=0)
    state, updates = toy.federation(server)
    job = distill_job(updates[0], state, server.shop)
    former = distill_client(job, server.shop.bench)
    again = distill_client(dataclasses.replace(job, latents=former.latents), server.shop.bench)
    assert torch.equal(again.images, former.images)
    fewer = {0: 1, 1: 2}
    part = distill_client(dataclasses.replace(job, images_per_class=fewer), server.shop.bench)
    more = distill_client(dataclasses.replace(job, latents=part.latents), server.shop.bench)
    assert len(more.images) == 0  # the new one would be a bare sample
    assert more.latents is part.latents
