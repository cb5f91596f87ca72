"""Laws of FedProx: one term in the gradient, on the device alone."""

import pytest
import torch
from inprocess_run import run, same_models
from torch import nn

from feddgm_flwr.core.local import Task
from feddgm_flwr.core.training import PLAIN
from feddgm_flwr.methods.fedprox import proximal_rule


def test_the_rule_adds_mu_times_the_way_gone():
    parameters = [nn.Parameter(torch.randn(2, 3)), nn.Parameter(torch.randn(3))]
    sent = {"w": torch.randn(2, 3), "b": torch.randn(3)}
    gradients = [torch.randn(2, 3), torch.randn(3)]
    for p, g in zip(parameters, gradients, strict=True):
        p.grad = g.clone()
    proximal_rule(Task(sent, 1), 0.25).adjust(parameters)
    for p, g, start in zip(parameters, gradients, sent.values(), strict=True):
        torch.testing.assert_close(p.grad, g + 0.25 * (p.detach() - start))


def test_a_parameter_without_a_gradient_is_left_alone():
    parameter = nn.Parameter(torch.ones(3))
    proximal_rule(Task({"w": torch.zeros(3)}, 1), 0.25).adjust([parameter])
    assert parameter.grad is None


def test_mu_zero_is_the_plain_rule(tmp_path):
    assert proximal_rule(Task({"w": torch.zeros(3)}, 1), 0.0) is PLAIN
    prox = run(tmp_path / "prox", method="fedprox", fedprox__mu=0.0, num_server_rounds=1)
    plain = run(tmp_path / "plain", method="fedavg", num_server_rounds=1)
    assert same_models(prox.models, plain.models)


def test_nothing_travels_beside_the_parameters(tmp_path):
    prox = run(tmp_path / "prox", method="fedprox", fedprox__mu=0.5)
    plain = run(tmp_path / "plain", method="fedavg")
    assert all(set(m.content) == {"arrays", "config"} for m in prox.asked_to_train())
    assert all(set(m.content["config"]) == {"server-round"} for m in prox.asked_to_train())
    for way in ("bytes_down", "bytes_up"):
        assert [r[way] for r in prox.rounds] == [r[way] for r in plain.rounds]
    assert prox.rounds[0]["loss"] != plain.rounds[0]["loss"]


def moved(folder, mu, loss):
    """Return how far the surrogate goes in a round, squared."""
    said = {"fedprox__mu": mu, "client__loss": loss}
    ended = run(folder, method="fedprox", num_server_rounds=1, **said)
    start = ended.asked_to_train()[0].content["arrays"].to_torch_state_dict()
    end = ended.models["surrogate"]
    return sum(float((end[k] - start[k]).square().sum()) for k in end)


@pytest.mark.parametrize("loss", ["cross-entropy", "balanced-softmax"])
def test_the_proximal_term_holds_clients_back_under_either_loss(loss, tmp_path):
    assert moved(tmp_path / "held", 5.0, loss) < 0.5 * moved(tmp_path / "free", 0.0, loss)


def test_a_negative_mu_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"fedprox.mu must be >= 0, got -1.0"):
        run(tmp_path / "run", method="fedprox", fedprox__mu=-1.0)
