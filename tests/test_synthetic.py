"""Laws of latents between rounds, and of sets of synthetic images."""

import pytest
import torch
import toy
from torch.nn.functional import one_hot

from feddgm_flwr.core.distillation.settings import DistillConfig
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.synthetic import (
    LOGIT_SCALE,
    SyntheticSet,
    extend_latents,
    fresh_latents,
)
from feddgm_flwr.priors.pixel import PixelPrior

PRIOR = PixelPrior(toy.SPEC)


def some(n: int, owner: int, weight: float = 1.0) -> SyntheticSet:
    """A set whose every image is of the owner's shade and its place's class."""
    return SyntheticSet(
        images=torch.full((n, 1, 8, 8), owner / 10),
        targets=one_hot(torch.arange(n) % 3, 3).float(),
        weights=torch.full((n,), weight),
        owner=torch.full((n,), owner),
    )


def fresh(wanted: dict[int, int], *, seed: int = 0, **config):
    rng = derive(seed, "latents")
    return fresh_latents(PRIOR, wanted, 3, DistillConfig(**config), rng=rng)


def extended(old, wanted: dict[int, int], *, seed: int = 1, **config):
    rng = derive(seed, "latents")
    return extend_latents(old, PRIOR, wanted, 3, DistillConfig(**config), rng=rng)


def test_joined_sets_keep_their_order_and_their_weights():
    parts = [some(2, 7, 0.5), some(1, 3, 4.0), some(3, 7)]
    whole = SyntheticSet.concat(parts)
    assert len(whole) == 6
    assert whole.owner.tolist() == [7, 7, 3, 7, 7, 7]
    assert whole.weights.tolist() == [0.5, 0.5, 4.0, 1.0, 1.0, 1.0]
    assert whole.targets.argmax(1).tolist() == [0, 1, 0, 0, 1, 2]
    torch.testing.assert_close(whole.images[:, 0, 0, 0], whole.owner / 10)


def test_an_empty_set_has_the_datas_shapes_and_adds_nothing():
    empty = SyntheticSet.empty(toy.SPEC)
    assert len(empty) == 0
    assert empty.images.shape == (0, 1, 8, 8)
    assert empty.targets.shape == (0, 3)
    assert toy.same(SyntheticSet.concat([empty, some(2, 1), empty]), some(2, 1))
    assert toy.same(SyntheticSet.concat([empty, empty]), empty)


def test_fresh_latents_are_as_many_as_asked_class_by_class():
    latents = fresh({2: 1, 0: 3})
    assert latents.labels.tolist() == [0, 0, 0, 2]
    assert latents.values.shape == (4, 1, 8, 8)
    assert latents.label_logits is None
    assert latents.student_lr == DistillConfig().student_lr


def test_fresh_latents_follow_their_seed():
    assert toy.same(fresh({0: 2, 1: 1}), fresh({0: 2, 1: 1}))
    assert not toy.same(fresh({0: 2, 1: 1}), fresh({0: 2, 1: 1}, seed=1))


def test_soft_labels_start_near_one_hot_on_the_latents_own_class():
    latents = fresh({0: 1, 2: 2}, labels="soft")
    assert torch.equal(latents.label_logits, LOGIT_SCALE * one_hot(latents.labels, 3).float())
    assert (latents.label_logits.softmax(1).amax(1) > 0.98).all()


def test_no_classes_give_no_latents():
    # A reply that proves nothing is distilled into no images, not into an error.
    latents = fresh({}, labels="soft")
    assert latents.labels.shape == (0,)
    assert latents.values.shape == (0, 1, 8, 8)


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_a_warm_start_keeps_the_old_values_in_their_order_and_appends_new_classes(labels):
    old = fresh({1: 2, 2: 1}, labels=labels, student_lr=0.07)
    more = extended(old, {0: 2, 1: 2, 2: 3}, labels=labels)
    assert more.labels.tolist() == [1, 1, 2, 0, 0, 2, 2]
    assert more.values.shape == (7, 1, 8, 8)
    assert torch.equal(more.values[:3], old.values)
    assert torch.equal(more.values[3:], fresh({0: 2, 2: 2}, seed=1).values)
    assert more.student_lr == 0.07
    if labels == "hard":
        assert more.label_logits is None
    else:
        assert torch.equal(more.label_logits[:3], old.label_logits)
        assert torch.equal(more.label_logits[3:], fresh({0: 2, 2: 2}, labels="soft").label_logits)


def test_a_warm_start_that_lacks_nothing_is_the_old_latents_themselves():
    old = fresh({0: 2, 1: 2})
    assert extended(old, {0: 2, 1: 2}) is old
    # What was made once is not thrown away when fewer are asked for.
    assert extended(old, {0: 1}) is old


def test_labels_that_were_hard_stay_hard_and_those_of_a_soft_run_stay_soft_when_nothing_is_new():
    assert extended(fresh({0: 1}), {0: 1, 1: 1}, labels="soft").label_logits is None
    soft = fresh({0: 1}, labels="soft")
    assert extended(soft, {0: 1}, labels="hard").label_logits is soft.label_logits


def test_balanced_lets_every_class_that_is_there_weigh_the_same():
    targets = torch.eye(4)[[0, 0, 0, 1, 3]]
    uneven = SyntheticSet(
        torch.rand(5, 1, 2, 2), targets, torch.tensor([1.0, 2, 3, 4, 5]), torch.zeros(5).long()
    )
    even = uneven.balanced()
    mass = (even.targets * even.weights[:, None]).sum(0)
    torch.testing.assert_close(mass, torch.tensor([1.0, 1, 0, 1]))
    # Within a class the images keep their proportions, and nothing else changes.
    torch.testing.assert_close(even.weights[:3] / even.weights[0], torch.tensor([1.0, 2, 3]))
    assert even.images is uneven.images
    assert even.targets is uneven.targets


def test_balanced_takes_soft_targets_by_their_shares_and_an_empty_set_as_it_is():
    soft = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    even = SyntheticSet(torch.rand(2, 1, 2, 2), soft, torch.ones(2), torch.zeros(2).long())
    torch.testing.assert_close(even.balanced().weights, torch.tensor([0.5 / 1.5 + 1, 1 / 1.5]))
    assert len(SyntheticSet.empty(toy.SPEC).balanced()) == 0
