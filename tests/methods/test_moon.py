"""Laws of MOON: the paper's loss, logarithm by logarithm; the server keeps what it needs."""

import math
from collections import OrderedDict

import pytest
import torch
from inprocess_run import run, same_models, spoil
from torch import nn

from feddgm_flwr.core.images import ImageSet
from feddgm_flwr.core.local import ClientConfig, Task, walk
from feddgm_flwr.core.params import Params
from feddgm_flwr.core.state import ClientUpdate, Extra, ServerState
from feddgm_flwr.core.training import PLAIN
from feddgm_flwr.methods import moon

RNG = torch.Generator().manual_seed(0)
MU, T, LR = 2.0, 0.25, 0.2


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=RNG, dtype=torch.float64)


def params() -> Params:
    return {
        "hidden.weight": drawn(5, 4),
        "hidden.bias": drawn(5),
        "classifier.weight": drawn(3, 5),
        "classifier.bias": drawn(3),
    }


START, LAST = params(), [params(), params()]
X = [drawn(6, 4), drawn(3, 4)]
Y = [torch.tensor([0, 1, 2, 2, 1, 0]), torch.tensor([0, 0, 1])]


def by_hand(i: int, steps: int, *, heard: bool) -> Params:
    """Return where client ``i`` ends, image by image and logarithm by logarithm."""
    w = {k: p.clone().requires_grad_() for k, p in START.items()}

    def features(p, x):
        return torch.clamp(p["hidden.weight"] @ x + p["hidden.bias"], min=0)

    def cos(a, b):
        return a @ b / (a @ a).sqrt() / (b @ b).sqrt()

    for _ in range(steps):
        loss = torch.zeros((), dtype=torch.float64)
        for x, y in zip(X[i], Y[i], strict=True):
            z = features(w, x)
            logits = w["classifier.weight"] @ z + w["classifier.bias"]
            loss = loss + logits.exp().sum().log() - logits[y]
            if heard:
                near = (cos(z, features(START, x)) / T).exp()
                far = (cos(z, features(LAST[i], x)) / T).exp()
                loss = loss - MU * (near / (near + far)).log()
        gradients = torch.autograd.grad(loss / len(X[i]), list(w.values()))
        w = {
            k: (p - LR * g).detach().requires_grad_()
            for (k, p), g in zip(w.items(), gradients, strict=True)
        }
    return {k: p.detach() for k, p in w.items()}


def replied(i: int, state: ServerState, steps: int) -> ClientUpdate:
    layers = OrderedDict(
        flatten=nn.Flatten(), hidden=nn.Linear(4, 5), relu=nn.ReLU(), classifier=nn.Linear(5, 3)
    )
    task = Task(state.surrogate, state.server_round + 1, moon.down(state, i))
    walked = walk(
        nn.Sequential(layers).double(),
        ImageSet(X[i].reshape(-1, 1, 2, 2), Y[i]),
        task,
        ClientConfig(epochs=steps, lr=LR, batch_size=100),
        moon.rule(task, mu=MU, temperature=T),
        rng=torch.Generator().manual_seed(i),
        device=torch.device("cpu"),
    )
    return ClientUpdate(i, walked.params, len(X[i]))


@pytest.mark.parametrize("heard", [(), (0,), (0, 1)])
def test_a_round_is_the_papers(heard):
    state = ServerState(4, START, memory={"clients": {i: LAST[i] for i in heard}})
    replies = [replied(i, state, 2 + i) for i in (0, 1)]
    ends = [by_hand(i, 2 + i, heard=i in heard) for i in (0, 1)]
    after, report = moon.advance(state, replies, 2)
    for name in START:
        for reply, end in zip(replies, ends, strict=True):
            torch.testing.assert_close(reply.params[name], end[name])
        mean = (6 * ends[0][name] + 3 * ends[1][name]) / 9
        torch.testing.assert_close(after.surrogate[name], mean)
    assert report is None
    assert after.server_round == 5
    assert after.memory["clients"] == {u.partition_id: u.params for u in replies}


def test_who_is_not_heard_keeps_its_last_model():
    state = ServerState(4, START, memory={"clients": {0: LAST[0], 1: LAST[1]}})
    after, _ = moon.advance(state, [ClientUpdate(1, START, 3)], 2)
    assert moon.down(after, 0) == Extra(tensors=LAST[0])
    assert moon.down(after, 1) == Extra(tensors=START)
    assert moon.down(after, 2) == Extra()
    assert state.memory["clients"][1] is LAST[1]


def test_at_equal_distance_the_term_is_log_two_and_mu_zero_is_the_plain_rule():
    loss = moon.contrastive_loss(START, START, mu=3.0, temperature=T)
    layers = OrderedDict(
        flatten=nn.Flatten(), hidden=nn.Linear(4, 5), relu=nn.ReLU(), classifier=nn.Linear(5, 3)
    )
    model, batch = nn.Sequential(layers).double(), (X[0].reshape(-1, 1, 2, 2), Y[0], None)
    added = loss(model, *batch) - PLAIN.objective(model, *batch)
    assert float(added.detach()) == pytest.approx(3 * math.log(2))
    task = Task(START, 2, Extra(tensors=LAST[0]))
    assert moon.rule(task, mu=0.0, temperature=T) is PLAIN
    assert moon.rule(Task(START, 1), mu=1.0, temperature=T) is PLAIN


def test_through_both_apps_the_last_model_comes_down_from_the_second_time_on(tmp_path):
    sent = []

    def keep(message, reply):
        sent.append((message.content, reply.content))
        return reply

    ended = run(tmp_path / "run", method="moon", tamper=spoil(keep))
    plain = run(tmp_path / "plain", method="fedavg")
    (first, up), (second, _) = sent
    assert set(first) == {"arrays", "config"}
    assert set(second) == {"arrays", "config", "extra"}
    assert set(up) == {"arrays", "metrics"}
    last, said = (r.to_torch_state_dict() for r in (second["extra"], up["arrays"]))
    assert all(torch.equal(last[name], said[name]) for name in said)
    assert ended.rounds[0]["bytes_down"] == plain.rounds[0]["bytes_down"]
    assert 1.9 < ended.rounds[1]["bytes_down"] / plain.rounds[1]["bytes_down"] < 2.1
    assert not same_models(ended.models, plain.models)
