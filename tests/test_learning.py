"""Models learn on the server, keep what they have where they cannot, and say so."""

import dataclasses

import pytest
import torch
import toy
from toy import quiet, same

from feddgm_flwr.core.learning import GlobalModelConfig, Learner, copied, name_list, warm_cosine
from feddgm_flwr.core.models import SurrogateConfig as Surrogate
from feddgm_flwr.core.models import build_global_model, initialise
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.synthetic import SyntheticSet
from feddgm_flwr.core.training import TrainConfig, train
from feddgm_flwr.events import Trained, TrainingFailed, TrainProgress

CPU = torch.device("cpu")


def lessons(n: int = 12, weight: float = 1.0) -> SyntheticSet:
    data = toy.images([i % 3 for i in range(n)])
    targets = torch.nn.functional.one_hot(data.labels, 3).float()
    owner = torch.zeros(n, dtype=torch.long)
    return SyntheticSet(data.images, targets, torch.full((n,), weight), owner)


def learner(name: str = "convnet", **config) -> Learner:
    module = build_global_model(name, toy.SPEC, Surrogate(depth=2, width=4))
    return Learner(name, module, TrainConfig(**{"epochs": 3, "lr": 0.05, **config}), CPU)


def weights_of(one: Learner, seed: int = 0):
    initialise(one.module, rng=derive(seed, "weights"))
    return copied(one.module.state_dict())


def learn(one: Learner, weights, what: SyntheticSet, *, seed: int = 0, emit=quiet):
    rng = derive(seed, "train")
    return one.learn(weights, what, rng=rng, server_round=4, emit=emit)


def test_learning_is_training_on_the_set_from_the_given_weights():
    one = learner()
    before = weights_of(one)
    weights_of(one, seed=9)  # the module's own weights are scratch space
    after = learn(one, before, lessons())
    one.module.load_state_dict(before)
    what = lessons()
    train(
        one.module,
        what.images,
        what.targets,
        one.config,
        weights=torch.ones(12),
        rng=derive(0, "train"),
    )
    assert same(after, copied(one.module.state_dict()))
    assert not same(after, before)


def test_same_seed_teaches_the_same_and_another_seed_another():
    one = learner(batch_size=4)
    start = weights_of(one)
    assert same(learn(one, start, lessons()), learn(one, start, lessons()))
    assert not same(learn(one, start, lessons()), learn(one, start, lessons(), seed=1))


def talk(one: Learner, weights, said, *, seed: int = 0, emit=quiet):
    pictures = lambda n, rng: torch.rand(n, 1, 8, 8, generator=rng)  # noqa: E731
    rng = derive(seed, "listen")
    return one.listen(weights, said, pictures, rng=rng, server_round=4, emit=emit)


def brightest(images):
    """Say which third of an image is the brightest."""
    thirds = torch.tensor_split(images.mean((1, 2)), 3, dim=1)
    return 20 * torch.stack([t.mean(1) for t in thirds], 1)


def listener(name: str = "convnet", **config) -> Learner:
    one = learner(name)
    told = {"steps": 60, "batch_size": 16, "listening_lr": 0.01, "temperature": 1.0}
    return dataclasses.replace(one, config=GlobalModelConfig(**{**told, **config}))


def test_listening_takes_over_what_the_teachers_say():
    one, events = listener(), []
    before = weights_of(one)
    after = talk(one, before, brightest, emit=events.append)
    fresh = torch.rand(200, 1, 8, 8, generator=derive(1, "unseen"))
    agree = []
    for weights in (before, after):
        one.module.load_state_dict(weights)
        right = one.module(fresh).argmax(1) == brightest(fresh).argmax(1)
        agree.append(float(right.float().mean()))
    assert agree[0] < 0.5
    assert agree[1] > 0.7
    assert same(after, talk(one, before, brightest))
    assert not same(after, talk(one, before, brightest, seed=1))
    told = [(e.epoch, e.epochs) for e in events if isinstance(e, TrainProgress)]
    assert told == [(1, 2), (2, 2)]
    (trained,) = (e for e in events if isinstance(e, Trained))
    assert (trained.images, trained.epochs, trained.round) == (60 * 16, 2, 4)


def test_who_hears_nothing_or_infinity_stays_as_it_was():
    one, events = listener(steps=0), []
    before = weights_of(one)
    assert same(talk(one, before, brightest), before)
    loud = lambda images: brightest(images) * float("inf")  # noqa: E731
    assert same(talk(listener(), before, loud, emit=events.append), before)
    assert [type(e) for e in events] == [TrainingFailed]


def test_the_rate_rises_in_a_tenth_of_the_steps_and_ends_near_zero():
    rates = [warm_cosine(i, 100) for i in range(100)]
    assert max(rates) == max(rates[:15])
    assert rates[0] == pytest.approx(0.1, rel=1e-2)
    assert rates[-1] < 1e-3
    assert all(0 < r <= 1 for r in [*rates, warm_cosine(0, 1)])


def test_only_the_ratio_of_the_images_weights_counts():
    one = learner()
    start = weights_of(one)
    light, heavy = (learn(one, start, lessons(weight=w)) for w in (1.0, 64.0))
    assert same(light, heavy)


def test_statistics_of_batch_norm_are_learned_and_kept_too():
    one = learner("resnet18", epochs=1)
    start = weights_of(one)
    after = learn(one, start, lessons())
    moved = [k for k in start if not torch.equal(start[k], after[k])]
    assert any("running_mean" in k for k in moved)
    assert set(after) == set(start)


def test_what_was_learned_is_not_the_scratch_space():
    one = learner()
    after = learn(one, weights_of(one), lessons())
    before = {k: v.clone() for k, v in after.items()}
    weights_of(one, seed=3)
    assert same(after, before)


def test_every_epoch_and_the_end_are_told():
    events, one = [], learner()
    learn(one, weights_of(one), lessons(), emit=events.append)
    *progress, end = events
    assert [(e.epoch, e.epochs) for e in progress] == [(1, 3), (2, 3), (3, 3)]
    assert all(isinstance(e, TrainProgress) and e.eta_s >= 0 for e in progress)
    assert isinstance(end, Trained)
    assert (end.model, end.images, end.epochs, end.loss) == ("convnet", 12, 3, progress[-1].loss)
    assert {e.round for e in events} == {4}


def test_training_that_diverges_keeps_the_weights_and_says_why():
    events, one = [], learner(lr=1e30)
    start = weights_of(one)
    assert same(learn(one, start, lessons(), emit=events.append), start)
    end = events[-1]
    assert isinstance(end, TrainingFailed)
    assert (end.round, end.model) == (4, "convnet")
    assert "must stay finite" in end.reason
    assert not any(isinstance(e, Trained) for e in events)


@pytest.mark.parametrize(("images", "batch"), [(1, 64), (12, 1)])
def test_batch_norm_learns_nothing_of_a_single_image_and_says_so(images, batch):
    events, one = [], learner("resnet18", batch_size=batch)
    start = weights_of(one)
    assert same(learn(one, start, lessons(images), emit=events.append), start)
    assert [type(e) for e in events] == [TrainingFailed]
    assert "at least 2 images" in events[0].reason
    plain = learner(batch_size=batch)
    start = weights_of(plain)
    assert not same(learn(plain, start, lessons(images)), start)


def test_batch_norm_hears_nothing_of_a_single_picture_and_says_so():
    events, one = [], listener("resnet18", batch_size=1)
    start = weights_of(one)
    assert same(talk(one, start, brightest, emit=events.append), start)
    assert [type(e) for e in events] == [TrainingFailed]
    assert "at least 2 images" in events[0].reason


def test_no_images_leave_the_weights_and_tell_nothing():
    events, one = [], learner()
    start = weights_of(one)
    kept = learn(one, start, SyntheticSet.empty(toy.SPEC), emit=events.append)
    assert same(kept, start)
    assert events == []


def test_briefly_changes_how_long_and_how_fast_and_nothing_else():
    one = learner(momentum=0.9, weight_decay=0.01)
    brief = one.briefly(1, 0.5)
    assert (brief.config.epochs, brief.config.lr) == (1, 0.5)
    assert dataclasses.replace(brief, config=one.config) == one
    assert dataclasses.replace(brief.config, epochs=3, lr=0.05) == one.config
    assert one.briefly(7).config == dataclasses.replace(one.config, epochs=7)


@pytest.mark.parametrize(
    ("names", "expected"),
    [("", ()), ("vit", ("vit",)), (" vit , convnet ", ("vit", "convnet"))],
)
def test_names_are_listed_in_order(names, expected):
    assert name_list(names) == expected
    assert GlobalModelConfig(names=names).name_list == expected
