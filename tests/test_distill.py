"""Laws of one client's distillation."""

import dataclasses
import math

import pytest
import torch
import toy

from feddgm_flwr.core.algorithm import distill_job
from feddgm_flwr.core.distillation.distill import converged, distill_client, minibatches


def result(progress=None, **overrides):
    server = toy.setting(**overrides)
    state, updates = toy.federation(server)
    return distill_client(distill_job(updates[0], state, server), server.bench, progress=progress)


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
    assert not torch.equal(soft.latents.label_logits.argmax(1), torch.zeros(4))
    start = result(distill__labels="soft", distill__iterations=0)
    assert not torch.equal(soft.targets, start.targets)


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
    server = toy.setting()
    state, updates = toy.federation(server)
    job = distill_job(updates[0], state, server)
    broken = {k: torch.full_like(v, 1e30) for k, v in job.target.items()}
    out = distill_client(dataclasses.replace(job, target=broken), server.bench)
    assert "non-finite matching loss" in out.report.stopped
    assert math.isnan(out.report.last_loss)
    assert len(out.images) == 0


def test_augmentation_is_siamese_and_seeded():
    plain, first, again = (result(distill__augment=a) for a in ("", "scale", "scale"))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(plain.images, first.images)


def test_progress_is_told_at_every_iteration():
    seen = []
    out = result(lambda i, n, loss: seen.append((i, n)))
    assert seen == [(i + 1, 6) for i in range(6)]
    assert out.report.iterations == 6
