"""Laws of FedRS, FedLC and ``client.loss``: one loss each, by hand, on the device alone."""

import re

import linear
import numpy as np
import pytest
import torch
from inprocess_run import run, same_models

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.local import Task, balanced_softmax
from feddgm_flwr.core.ownership import owned_classes
from feddgm_flwr.core.state import ClientUpdate, ServerState
from feddgm_flwr.core.training import PLAIN, Rule
from feddgm_flwr.methods.fedlc import calibrated_loss
from feddgm_flwr.methods.fedrs import restricted_softmax
from feddgm_flwr.methods.halves import method_of

OWN_LOSS = [("fedrs", {"fedrs.alpha": 0.4}), ("fedlc", {"fedlc.tau": 0.7})]
HAS = [[True, True, False], [False, True, True], [True, False, False]]
"""Which classes the clients have; how many images of each is counted in linear.py's labels."""
COUNTS = [[2, 3, 0], [0, 1, 5], [7, 0, 0]]


def gradient(name: str, i: int):
    """Return the derivative by the logits, written from the papers' sums over classes."""
    n, has = np.array(COUNTS[i], float), np.array(HAS[i])

    def balanced(z, onehot):
        p = n * np.exp(z)
        return p / p.sum(1, keepdims=True) - onehot

    def restricted(z, onehot):
        alphas = np.where(has, 1.0, 0.4)
        return alphas * (linear.softmax(alphas * z) - onehot)

    def calibrated(z, onehot):
        p = np.zeros_like(z)
        p[:, has] = linear.softmax(z[:, has] - 0.7 / n[has] ** 0.25)
        return p - onehot

    return {"balanced": balanced, "fedrs": restricted, "fedlc": calibrated}[name]


def rule_of(name: str, said: dict, task: Task, i: int) -> Rule:
    config = RunConfig.from_run_config({"method": name, **said})
    return method_of(name).client(config).rule(task, linear.images(i))


@pytest.mark.parametrize(("name", "said"), OWN_LOSS)
def test_a_round_is_the_papers(name, said):
    task = Task(linear.tensors(linear.START), 1)
    replies = [
        ClientUpdate(i, linear.walked(i, task, rule_of(name, said, task, i)).params, n)
        for i, n in enumerate((5, 6, 7))
    ]
    expected = [linear.descended(i, linear.START, gradient(name, i)) for i in range(3)]
    for reply, end in zip(replies, expected, strict=True):
        linear.close(reply.params, end)
    server = method_of(name).server(RunConfig(method=name), None, lambda event: None)
    state, report = server.advance(ServerState(0, task.params), replies, 3)
    mean = {k: (5 * a[k] + 6 * b[k] + 7 * c[k]) / 18 for a, b, c in [expected] for k in a}
    linear.close(state.surrogate, mean)
    assert report is None
    assert abs(mean["classifier.bias"] - linear.START["classifier.bias"]).max() > 0.01


@pytest.mark.parametrize("i", range(3))
def test_a_balanced_softmax_counts_the_clients_own_images(i):
    task = Task(linear.tensors(linear.START), 1)
    found = linear.walked(i, task, loss="balanced-softmax")
    linear.close(found.params, linear.descended(i, linear.START, gradient("balanced", i)))
    z = linear.A[i] @ linear.START["classifier.weight"].T + linear.START["classifier.bias"]
    p = np.array(COUNTS[i]) * np.exp(z)
    p = (p / p.sum(1, keepdims=True))[np.arange(len(z)), linear.Y[i]]
    still = linear.walked(i, task, loss="balanced-softmax", epochs=0)
    assert still.loss == pytest.approx(-np.log(p).mean(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    "objective",
    [balanced_softmax, lambda n: restricted_softmax(n, 0.5), lambda n: calibrated_loss(n, 0.5)],
)
def test_no_loss_raises_the_row_of_a_class_that_the_client_lacks(objective):
    """What ``ownership`` proves a class by; its features here are not negative either."""
    counts = torch.tensor([4, 0, 9, 0, 1])
    rng = torch.Generator().manual_seed(0)
    labels = torch.repeat_interleave(torch.arange(5), counts)
    model = torch.nn.Linear(6, 5)
    start = {f"classifier.{k}": v.detach().clone() for k, v in model.named_parameters()}
    sgd = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    for _ in range(30):
        features = torch.rand(len(labels), 6, generator=rng) + torch.eye(6)[labels]
        sgd.zero_grad()
        objective(counts)(model, features, labels, None).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())
        assert (model.weight.grad[counts == 0] >= 0).all()
        sgd.step()
    end = {f"classifier.{k}": v.detach().clone() for k, v in model.named_parameters()}
    assert set(owned_classes(start, end, None)) <= {0, 2, 4}
    assert owned_classes(start, end, None)


def test_under_a_balanced_softmax_the_row_of_an_absent_class_does_not_move_at_all():
    task = Task(linear.tensors(linear.START), 1)
    end = linear.walked(0, task, loss="balanced-softmax").params
    for name, p in end.items():
        assert torch.equal(p[2], task.params[name][2])
        assert not torch.equal(p[:2], task.params[name][:2])


@pytest.mark.parametrize(
    ("method", "neutral"), [("fedrs", {"fedrs__alpha": 1.0}), ("fedlc", {"fedlc__tau": 0.0})]
)
def test_through_both_apps_nothing_travels_and_the_neutral_setting_is_fedavg(
    method, neutral, tmp_path
):
    plain = run(tmp_path / "plain", method="fedavg", data__alpha=0.2)
    same = run(tmp_path / "same", method=method, data__alpha=0.2, **neutral)
    other = run(tmp_path / "other", method=method, data__alpha=0.2)
    assert same_models(same.models, plain.models)
    assert not same_models(other.models, plain.models)
    assert all(set(m.content) == {"arrays", "config"} for m in other.asked_to_train())
    for way in ("bytes_down", "bytes_up"):
        assert [r[way] for r in other.rounds] == [r[way] for r in plain.rounds]


@pytest.mark.parametrize("method", ["feddgm", "scaffold"])
def test_client_loss_serves_any_method(method, tmp_path):
    how = {"method": method, "data__alpha": 0.2, "num_server_rounds": 1}
    balanced = run(tmp_path / "b", client__loss="balanced-softmax", **how)
    assert balanced.rounds[0]["replies"]["accepted"] == 3
    assert not same_models(balanced.models, run(tmp_path / "p", **how).models)


def test_a_method_with_a_loss_of_its_own_takes_no_other(tmp_path):
    for method, _ in OWN_LOSS:
        sentence = f"client.loss must be 'cross-entropy' under method = '{method}'"
        with pytest.raises(ValueError, match=re.escape(sentence)):
            run(tmp_path / method, method=method, client__loss="balanced-softmax")


def test_only_methods_that_say_so_have_a_loss_of_their_own():
    task = Task(linear.tensors(linear.START), 1)
    for name in ("fedavg", "fedprox", "feddgm"):
        assert rule_of(name, {}, task, 0).objective is PLAIN.objective
    assert rule_of("fedlc", {"fedlc.tau": 0.0}, task, 0) == PLAIN
