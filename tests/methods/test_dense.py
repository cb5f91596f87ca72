"""Laws of DENSE and Co-Boosting: losses and steps apart in numpy; generator, pool, student."""

import numpy as np
import pytest
import torch
from inprocess_run import power_cut, run, same_models
from torch import nn
from toy import CONFIG, SPEC, federation, images, quiet, same, server

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.datafree import NOISE, Batch, DataFreeConfig, Tactics, build_generator, teach
from feddgm_flwr.core.ensemble import Ensemble, answers, divergence
from feddgm_flwr.core.models import initialise
from feddgm_flwr.core.params import load_params
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.methods import coboosting, dense
from feddgm_flwr.methods.halves import method_of

RNG = np.random.default_rng(0)
TOLD, HEARD = RNG.normal(size=(2, 8, 3)) * 2
LABELS = RNG.integers(0, 3, 8)
P, Q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (TOLD, HEARD))
KL = (P * np.log(P / Q)).sum(1)
SURPRISE = -np.log(P[range(8), LABELS])
CPU = torch.device("cpu")


def tensors(*arrays):
    return [torch.tensor(a) for a in arrays]


def test_denses_generator_seeks_its_labels_where_the_student_errs():
    differs = P.argmax(1) != Q.argmax(1)
    assert 0 < differs.sum() < 8
    expected = SURPRISE.mean() - 0.5 * (differs * KL).mean()
    loss = dense.generator_loss(*tensors(TOLD, HEARD, LABELS), adversarial=0.5)
    np.testing.assert_allclose(loss, expected)


def test_co_boostings_generator_seeks_what_is_hard():
    expected = ((1 - P[range(8), LABELS]) * SURPRISE).mean() - 0.25 * KL.mean()
    told, heard, labels = tensors(TOLD, HEARD, LABELS)
    told.requires_grad_()
    loss = coboosting.generator_loss(told, heard, labels, adversarial=0.25)
    np.testing.assert_allclose(loss.detach(), expected)
    # The hardness is a weight, not a thing to be lowered.
    loss = coboosting.generator_loss(told, heard, labels, adversarial=0.0)
    (slope,) = torch.autograd.grad(loss, told)
    np.testing.assert_allclose(
        slope, (1 - P[range(8), LABELS])[:, None] * (P - np.eye(3)[LABELS]) / 8
    )


MEMBERS = RNG.normal(size=(3, 3, 4))
X = RNG.random((8, 4))


def linear_ensemble():
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False)).double()
    return Ensemble.of(module, [{"1.weight": torch.tensor(w)} for w in MEMBERS], CPU)


def test_a_weight_goes_down_by_the_sign_of_its_slope():
    ensemble = linear_ensemble()
    pictures, labels = torch.tensor(X).reshape(8, 1, 2, 2), torch.tensor(LABELS)
    batch = Batch(pictures, labels, ensemble.each(pictures))
    weights = np.full(3, 1 / 3)
    for _ in range(3):
        logits = X @ np.einsum("m,mkd->dk", weights, MEMBERS)
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        slope = np.einsum("nk,mkd,nd->m", (p - np.eye(3)[LABELS]) / 8, MEMBERS, X)
        weights = np.clip(weights - 0.5 * 0.99**3 * np.sign(slope), 0, 1)
    found = coboosting.weigh(ensemble, [batch] * 3, 3, step=0.5).weights
    np.testing.assert_allclose(found, weights)
    assert weights.min() == 0 or weights.max() > 0.5, weights
    same = coboosting.weigh(ensemble, [batch], 0, step=0.5).weights
    assert torch.equal(same, ensemble.weights), "not in the first epoch"


def test_an_image_is_pushed_off_by_the_sign_of_a_random_answers_slope():
    pictures = torch.tensor(X).reshape(8, 1, 2, 2)
    pushed = coboosting.harden(linear_ensemble(), pictures, derive(0, "u"), push=0.1)
    u = 2 * torch.rand(8, 3, generator=derive(0, "u")).double().numpy() - 1
    mean = MEMBERS.mean(0)
    p = np.exp(X @ mean.T / 4)
    p /= p.sum(1, keepdims=True)
    slope = (p * (u - (p * u).sum(1, keepdims=True))) @ mean / 4
    np.testing.assert_allclose(pushed.reshape(8, 4), X + 0.1 * np.sign(slope))


def generator():
    made = build_generator(SPEC, 8)
    initialise(made, rng=derive(0, "generator"))
    return made


def test_a_generator_makes_images_of_the_datas_shape_and_knows_the_label():
    noise, labels = torch.randn(4, NOISE, generator=derive(0, "z")), torch.tensor([0, 1, 2, 0])
    made = generator()
    shown = made((noise, labels)).detach()
    assert shown.shape == (4, 1, 8, 8)
    assert 0 <= float(shown.min()) < float(shown.max()) <= 1
    assert not torch.equal(shown, made((noise, labels.flip(0))))
    assert not list(made.buffers()), "its parameters are all that it is"


@pytest.fixture(scope="module")
def on():
    """Return a toy server, its round 0 and its clients' replies."""
    made = server()
    return made, *federation(made)


@pytest.fixture(scope="module")
def toy(on):
    """Return a toy surrogate, its first weights, and its clients' replies as an ensemble."""
    made, state, updates = on
    module = made.tools.learners.surrogate.module
    return module, state.surrogate, Ensemble.of(module, [u.params for u in updates], CPU)


def plain(told, heard, labels):
    return dense.generator_loss(told, heard, labels, adversarial=0.0)


def test_a_generator_learns_what_the_replies_take_for_a_label(toy):
    module, start, ensemble = toy
    made, losses = generator(), []

    def loss(told, heard, labels):
        losses.append(float(plain(told, heard, labels).detach()))
        return plain(told, heard, labels)

    config = DataFreeConfig(epochs=10, generator_steps=6, student_steps=0, generator_lr=0.01)
    end = teach(
        module, start, ensemble, made, Tactics(loss), config, num_classes=3, rng=derive(0, "x")
    )
    assert losses[-1] < 0.7 * losses[0]
    # Seen of the first step of a later batch, which was never taught itself.
    assert losses[54] < 0.9 * losses[0], "what it learns on one batch serves the next"
    assert all(torch.equal(end[k], start[k]) for k in start), "a student of no steps stays"


def test_the_student_comes_to_say_what_the_replies_say(toy):
    module, start, ensemble = toy
    shown = images([0, 1, 2] * 8).images
    told = answers(ensemble, shown, batch_size=24)

    def away(params):
        load_params(module, params)
        with torch.no_grad():
            return float(divergence(told, module(shown)).mean())

    config = DataFreeConfig(epochs=10, batch_size=12, lr=0.05)
    end = teach(
        module,
        start,
        ensemble,
        generator(),
        Tactics(plain),
        config,
        num_classes=3,
        rng=derive(0, "x"),
    )
    assert away(end) < 0.5 * away(start)


def test_weights_and_hardening_reach_the_student(toy):
    module, start, ensemble = toy
    seen = []

    def harden(now, shown, rng):
        seen.append((float(now.weights[0]), shown.shape))
        return 1 - shown

    def weigh(now, pool, epoch):
        seen.append(len(pool))
        return Ensemble(now.module, now.members, torch.tensor([1.0, 0.0]))

    config = DataFreeConfig(epochs=2, generator_steps=1, student_steps=2, batch_size=4)
    tactics = Tactics(plain, weigh, harden)
    teach(module, start, ensemble, generator(), tactics, config, num_classes=3, rng=derive(0, "x"))
    lesson = (1.0, (4, 1, 8, 8))
    assert seen == [1, lesson, lesson, 2, lesson, lesson]


FAST = {"epochs": 2, "generator_steps": 2, "student_steps": 2, "generator_width": 4}


def how(method, **said):
    return {"method": method, **{f"{method}__{k}": v for k, v in {**FAST, **said}.items()}}


def advanced(on, method, *, past=None, **said):
    """Return the state of the round after ``past``, or after round 0."""
    made, state, updates = on
    flat = {k.replace("__", ".").replace("_", "-"): v for k, v in how(method, **said).items()}
    config = RunConfig.from_run_config({**CONFIG, **flat})
    half = method_of(method).server(config, made.tools, quiet)
    return half.advance(past or state, updates, 2)[0]


@pytest.mark.parametrize("method", ["dense", "coboosting"])
def test_the_generator_goes_on_from_where_the_last_round_left_it(method, on):
    one = advanced(on, method)
    assert not same(one.memory, advanced(on, method, epochs=0).memory), "it has learned"
    assert same(one.memory, advanced(on, method, past=one, epochs=0).memory)


@pytest.mark.parametrize(
    ("method", "other"),
    [
        ("dense", {"adversarial": 2.0}),
        ("coboosting", {"adversarial": 0.0}),
        ("coboosting", {"weight_step": 0.2}),
        ("coboosting", {"push": 0.0}),
    ],
)
def test_every_term_of_a_method_reaches_the_surrogate(method, other, on):
    assert same(advanced(on, method), advanced(on, method))
    assert not same(advanced(on, method).surrogate, advanced(on, method, **other).surrogate)


@pytest.mark.parametrize("method", ["dense", "coboosting"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(method, tmp_path):
    whole = run(tmp_path / "whole", **how(method))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", tamper=power_cut(2), **how(method))
    resumed = run(tmp_path / "parts", resume=True, order=3, **how(method))
    assert resumed.numbers() == whole.numbers()
    assert same_models(resumed.models, whole.models)
    plain = run(tmp_path / "plain", method="fedavg")
    assert [r["bytes_up"] for r in whole.rounds] == [r["bytes_up"] for r in plain.rounds]
    assert whole.rounds[0]["loss"] != plain.rounds[0]["loss"]


def test_without_epochs_it_is_federated_averaging(tmp_path):
    ours = run(tmp_path / "ours", num_server_rounds=1, **how("dense", epochs=0))
    plain = run(tmp_path / "plain", num_server_rounds=1, method="fedavg")
    for name, value in plain.models["surrogate"].items():
        torch.testing.assert_close(ours.models["surrogate"][name], value)
