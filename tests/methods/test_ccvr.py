"""Laws of CCVR: moments by hand, pooled ones equal those of all images, classes relearned."""

from collections import OrderedDict
from dataclasses import replace

import linear
import numpy as np
import pytest
import torch
from inprocess_run import run, same_models, spoil
from torch import nn
from toy import same

from feddgm_flwr.core.local import ClientConfig, Task, walk
from feddgm_flwr.core.params import params_of
from feddgm_flwr.core.robust import Mean
from feddgm_flwr.core.state import ClientUpdate, Extra, ServerState
from feddgm_flwr.core.training import PLAIN
from feddgm_flwr.methods import ccvr
from feddgm_flwr.methods.ccvr import CCVRConfig, Moments

CONFIG = CCVRConfig(samples=40, epochs=3, lr=0.1)


def replied() -> list[ClientUpdate]:
    """Return the three clients' replies; all classes are somebody's."""
    task = Task(linear.tensors(linear.START), 1)
    found = []
    for i, n in enumerate((5, 6, 7)):
        walked = linear.walked(i, task)
        extra = ccvr.up(task, walked, linear.images(i))
        assert ccvr.wrong(extra, n, classes=3, width=4) == ""
        found.append(ClientUpdate(i, walked.params, n, extra=extra))
    return found


def test_a_client_sends_the_moments_of_its_own_classes():
    """The linear model's features are its images."""
    for i, update in enumerate(replied()):
        told = update.extra.tensors
        assert told["counts"].tolist() == [int((linear.Y[i] == c).sum()) for c in range(3)]
        for place, c in enumerate(sorted(set(linear.Y[i]))):
            own = linear.A[i][linear.Y[i] == c]
            np.testing.assert_allclose(told["means"][place], own.mean(0))
            expected = np.cov(own.T) if len(own) > 1 else np.zeros((4, 4))
            np.testing.assert_allclose(told["covariances"][place], expected, atol=1e-12)


def test_features_are_those_of_the_surrogate_that_was_sent():
    layers = OrderedDict(
        flatten=nn.Flatten(), hidden=nn.Linear(4, 5), relu=nn.ReLU(), classifier=nn.Linear(5, 3)
    )
    model = nn.Sequential(layers).double()
    task, data = Task(params_of(model), 1), linear.images(0)
    how = {"rng": torch.Generator().manual_seed(0), "device": torch.device("cpu")}
    walked = walk(model, data, task, ClientConfig(epochs=5, lr=0.5), PLAIN, **how)
    told = ccvr.up(task, walked, data).tensors
    w, b = (task.params[f"hidden.{k}"].numpy() for k in ("weight", "bias"))
    sent = np.maximum(linear.A[0] @ w.T + b, 0)
    for place in (0, 1):
        np.testing.assert_allclose(told["means"][place], sent[linear.Y[0] == place].mean(0))
    assert not np.allclose(walked.params["hidden.weight"], w), "it has moved since"
    assert torch.equal(params_of(model)["hidden.weight"], walked.params["hidden.weight"])


def test_pooled_moments_are_those_of_all_images_together():
    found = ccvr.pooled([Moments.read(u.extra) for u in replied()], [1.0] * 3)
    every, labels = np.concatenate(linear.A), np.concatenate(linear.Y)
    assert found.counts.tolist() == [9, 4, 5]
    for c in range(3):
        np.testing.assert_allclose(found.means[c], every[labels == c].mean(0))
        np.testing.assert_allclose(found.covariances[c], np.cov(every[labels == c].T), atol=1e-12)


def test_classes_that_nobody_has_are_left_out_of_the_pool():
    told = [Moments.read(replied()[i].extra) for i in (2,)]
    found = ccvr.pooled(told, [1.0])
    assert found.counts.tolist() == [7, 0, 0]
    assert found.means.shape == (1, 4)


def test_virtual_features_have_the_moments_that_they_are_drawn_from():
    """Of a class of two images too, whose covariance has rank one."""
    rng = np.random.default_rng(1)
    full = rng.normal(size=(9, 4)) @ rng.normal(size=(4, 4))
    pair = rng.normal(size=(2, 4))
    moments = Moments(
        torch.tensor([9, 0, 2]),
        torch.tensor(np.stack([full.mean(0), pair.mean(0)])),
        torch.tensor(np.stack([np.cov(full.T), np.cov(pair.T)])),
    )
    drawn, labels = ccvr.virtual(moments, 20000, rng=torch.Generator().manual_seed(0))
    assert labels.unique(return_counts=True)[1].tolist() == [20000, 20000]
    for c, own in ((0, full), (2, pair)):
        found, scale = drawn[labels == c].numpy(), np.abs(np.cov(own.T)).max()
        np.testing.assert_allclose(found.mean(0), own.mean(0), atol=0.03 * scale**0.5)
        np.testing.assert_allclose(np.cov(found.T), np.cov(own.T), atol=0.04 * scale)
    assert np.linalg.matrix_rank(drawn[labels == 2].numpy() - pair.mean(0), tol=1e-3) == 1


def test_a_calibrated_classifier_is_the_softmax_regression_on_virtual_features():
    """By numpy, from the features drawn and in the order of batches drawn; the rest is written."""
    moments = ccvr.pooled([Moments.read(u.extra) for u in replied()[:2]], [1.0] * 2)
    start = linear.tensors(linear.START)
    found = ccvr.calibrated(start, moments, CONFIG, rng=torch.Generator().manual_seed(5))
    rng = torch.Generator().manual_seed(5)
    x, y = (t.numpy() for t in ccvr.virtual(moments, 40, rng=rng))
    w, b = linear.START["classifier.weight"].copy(), linear.START["classifier.bias"].copy()
    for _ in range(3):
        for batch in torch.randperm(120, generator=rng).split(32):
            a, onehot = x[batch.numpy()], np.eye(3)[y[batch.numpy()]]
            d = (linear.softmax(a @ w.T + b) - onehot) / len(a)
            w, b = w - 0.1 * d.T @ a, b - 0.1 * d.sum(0)
    linear.close(found, {"classifier.weight": w, "classifier.bias": b})


def test_a_class_of_nobody_keeps_its_row():
    moments = ccvr.pooled([Moments.read(u.extra) for u in replied()[::2]], [1.0] * 2)
    assert moments.counts.tolist() == [9, 3, 0]
    start = linear.tensors(linear.START)
    found = ccvr.calibrated(start, moments, CONFIG, rng=torch.Generator().manual_seed(5))
    for name in start:
        assert torch.equal(found[name][2], start[name][2])
        assert not torch.equal(found[name][:2], start[name][:2])


@pytest.mark.parametrize("broadcast", ["mean", "calibrated"])
def test_what_is_scored_is_calibrated_and_what_is_sent_is_as_said(broadcast):
    state = ServerState(0, linear.tensors(linear.START))
    replies, config = replied(), replace(CONFIG, broadcast=broadcast)
    after = ccvr.advance(state, replies, config, seed=3)
    shown = ccvr.shown(after).surrogate
    mean = {
        name: sum(n * u.params[name].numpy() for n, u in zip((5, 6, 7), replies, strict=True)) / 18
        for name in linear.START
    }
    sent_the_mean = broadcast == "mean"
    for name, value in mean.items():
        assert np.allclose(after.surrogate[name], value) is sent_the_mean
        assert not np.allclose(shown[name], value)
    other = ccvr.advance(state, replies, replace(config, broadcast="mean"), seed=3)
    linear.close(shown, {k: v.numpy() for k, v in ccvr.shown(other).surrogate.items()})
    assert after.server_round == 1


def test_every_round_and_every_seed_draws_virtual_features_of_its_own():
    start, replies = linear.tensors(linear.START), replied()

    def calibrated(past, seed):
        return ccvr.advance(ServerState(past, start), replies, CONFIG, seed=seed).surrogate

    one = calibrated(0, 3)
    assert same(calibrated(0, 3), one)
    assert not same(calibrated(1, 3), one)
    assert not same(calibrated(0, 4), one)


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (lambda t: t.pop("means"), "it must send counts, means and covariances"),
        (lambda t: t.update(more=torch.ones(1)), "it must send counts, means and covariances"),
        (lambda t: t.update(counts=torch.tensor([2, 3])), "counts must be 3 whole numbers"),
        (lambda t: t.update(counts=torch.rand(3)), "counts must be 3 whole numbers"),
        (lambda t: t.update(counts=torch.tensor([2, -3, 0])), "counts must be >= 0"),
        (lambda t: t.update(counts=torch.tensor([0, 0, 0])), "counts must be >= 0"),
        (lambda t: t.update(counts=torch.tensor([2, 2, 1])), "moments of 3 classes"),
        (lambda t: t.update(counts=torch.tensor([2, 4, 0])), "counts must add up to the 5 images"),
        (lambda t: t.update(means=torch.rand(2, 5)), "must be of 4 features"),
        (lambda t: t.update(covariances=torch.rand(2, 4)), "must be of 4 features"),
        (lambda t: t.update(means=torch.ones(2, 4, dtype=torch.int64)), "must be floats"),
        (lambda t: t.update(counts=torch.tensor([2**62, 3, 0])), "counts must add up"),
        (lambda t: t.update(means=torch.full((2, 4), 1e30)), "means must be between"),
        (lambda t: t.update(covariances=torch.full((2, 4, 4), 1e9)), "covariances must be between"),
        (lambda t: t.update(covariances=-torch.eye(4).expand(2, 4, 4)), "must be >= 0"),
    ],
)
def test_moments_that_cannot_be_are_told(lie, reason):
    tensors = dict(replied()[0].extra.tensors)
    lie(tensors)
    assert reason in ccvr.wrong(Extra(tensors=tensors), 5, classes=3, width=4)


def test_a_feature_counts_as_often_as_its_reply_is_heard():
    """A reply heard twice is two replies, but for the one image that a covariance lacks."""
    replies = [Moments.read(u.extra) for u in replied()]
    twice = ccvr.pooled([replies[0], *replies], [1.0] * 4)
    found = ccvr.pooled(replies, [2.0, 1.0, 1.0])
    for name in ("means", "covariances"):
        torch.testing.assert_close(getattr(found, name), getattr(twice, name))


@pytest.mark.parametrize("kind", ["mean", "median"])
def test_a_claim_that_was_cut_or_does_not_count_bears_on_no_moments(kind):
    """The first says ten times its images; what counts of that, as of the others, is one time."""
    state, honest = ServerState(0, linear.tensors(linear.START)), replied()
    loud = Extra(tensors={**honest[0].extra.tensors, "counts": torch.tensor([20, 30, 0])})
    if kind == "median":
        honest = [replace(u, num_examples=7) for u in honest]
    lying = [replace(honest[0], extra=loud), *honest[1:]]
    heard = [
        ccvr.advance(state, updates, CONFIG, seed=3, mean_of=Mean(kind)).surrogate
        for updates in (honest, lying)
    ]
    for name, value in heard[0].items():
        torch.testing.assert_close(heard[1][name], value, rtol=0.2, atol=0.05)


def test_moments_that_teach_no_classifier_leave_the_means(caplog):
    replies = replied()
    wild = {**replies[0].extra.tensors, "means": torch.full((2, 4), ccvr.FARTHEST)}
    replies[0] = replace(replies[0], extra=Extra(tensors=wild))
    state = ServerState(0, linear.tensors(linear.START))
    after = ccvr.advance(state, replies, CCVRConfig(lr=1e30), seed=3)
    assert all(torch.isfinite(p).all() for p in after.surrogate.values())
    assert "the classifier stays the mean's" in caplog.text


def test_numbers_beside_the_moments_are_told():
    extra = replace(replied()[0].extra, numbers={"more": 1})
    assert "it must send" in ccvr.wrong(extra, 5, classes=3, width=4)


def test_through_both_apps_moments_travel_up_and_training_is_fedavgs(tmp_path):
    sent = []

    def keep(message, reply):
        sent.append((message.content, reply.content))
        return reply

    how = {"rounds__federated_evaluation": True, "data__alpha": 0.2}
    own = {"method": "ccvr", "ccvr__broadcast": "mean"}
    ended = run(tmp_path / "run", tamper=spoil(keep), **own, **how)
    plain = run(tmp_path / "plain", method="fedavg", **how)
    for down, up in sent:
        assert set(down) == {"arrays", "config"}
        assert set(up) == {"arrays", "metrics", "extra"}
    mine, theirs = (e.models["surrogate"] for e in (ended, plain))
    for name, value in mine.items():
        same = torch.allclose(value, theirs[name], atol=1e-5)
        assert same is not name.startswith("classifier."), name
    scored = [[r["accuracy"]["surrogate"] for r in e.rounds] for e in (ended, plain)]
    assert scored[0][0] > scored[1][0], "clients of few classes: what calibration is for"
    told = [e.rounds[0]["federated"]["loss"] for e in (ended, plain)]
    assert told[0] != told[1], "clients score what the server scores"
    sent_on = run(tmp_path / "sent-on", method="ccvr", **how)
    assert sent_on.rounds[0]["accuracy"] == ended.rounds[0]["accuracy"]
    assert not same_models(sent_on.models, ended.models)
