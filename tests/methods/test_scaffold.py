"""Laws of SCAFFOLD: the paper's Algorithm 1, option II, computed apart in numpy."""

import re
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from inprocess_run import run, spoil
from torch import nn

from feddgm_flwr.core.images import ImageSet
from feddgm_flwr.core.local import ClientConfig, Task, walk
from feddgm_flwr.core.state import ClientUpdate, Extra, ServerState
from feddgm_flwr.methods import scaffold
from feddgm_flwr.methods.steps import capped, wrong

ETA, ETA_G = 0.3, 0.8
STEPS = (2, 3, 1)
RNG = np.random.default_rng(0)
A = [RNG.normal(size=(n, 4)) for n in (5, 6, 7)]
Y = [RNG.integers(0, 3, len(a)) for a in A]
X0 = RNG.normal(size=(3, 4))


def by_hand(rounds, population):
    """Return x, c and the c_i after ``rounds``, by this programme on a linear softmax model:

    .. code-block:: python

        x, c = X0, np.zeros((3, 4))
        own = {i: np.zeros((3, 4)) for i in range(3)}
        for heard in rounds:
            y, new = {}, {}
            for i in heard:
                y[i] = x.copy()
                for _ in range(STEPS[i]):
                    p = np.exp(A[i] @ y[i].T)
                    p /= p.sum(1, keepdims=True)
                    g = (p - np.eye(3)[Y[i]]).T @ A[i] / len(A[i])
                    y[i] -= ETA * (g - own[i] + c)
                new[i] = own[i] - c + (x - y[i]) / (STEPS[i] * ETA)
            x = x + ETA_G * sum(y[i] - x for i in heard) / len(heard)
            c = c + sum(new[i] - own[i] for i in heard) / population
            own = own | new
    """
    programme = textwrap.dedent(by_hand.__doc__.split(".. code-block:: python\n")[1])
    found = {**globals(), "rounds": rounds, "population": population}
    exec(programme, found)
    return found["x"], found["c"], found["own"]


def model():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False)).double()


def ask(state, i):
    """Return client i's reply to what ``state`` sends it."""
    task = Task(state.surrogate, state.server_round + 1, scaffold.down(state, i))
    data = ImageSet(torch.tensor(A[i]).reshape(-1, 1, 2, 2), torch.tensor(Y[i]))
    config = ClientConfig(epochs=STEPS[i], lr=ETA, batch_size=100)
    walked = walk(
        model(),
        data,
        task,
        config,
        scaffold.rule(task, data),
        rng=torch.Generator().manual_seed(i),
        device=torch.device("cpu"),
    )
    extra = scaffold.up(task, walked, data)
    assert wrong(extra, len(data), config=config) == ""
    return ClientUpdate(i, walked.params, len(A[i]), extra=extra)


def federation(rounds, population):
    """Return the state after ``rounds``, each a tuple of the clients that are heard."""
    state = ServerState(0, {"1.weight": torch.tensor(X0)})
    for heard in rounds:
        replies = [ask(state, i) for i in heard]
        state = scaffold.advance(state, replies, population, client_lr=ETA, server_lr=ETA_G)
    return state


@pytest.mark.parametrize(
    ("rounds", "population"),
    [
        ([(0, 1, 2), (0, 1, 2)], 3),
        ([(0, 1), (1, 2)], 3),
        ([(0, 1), (1, 2), (0, 2)], 50),
        ([(2,), (0,), (2,)], 7),
    ],
)
def test_a_whole_federation_is_the_papers(rounds, population):
    state = federation(rounds, population)
    x, c, own = by_hand(rounds, population)
    close = {"rtol": 1e-12, "atol": 1e-13}
    np.testing.assert_allclose(state.surrogate["1.weight"], x, **close)
    np.testing.assert_allclose(state.memory["server"]["1.weight"], c, **close)
    heard = {i for r in rounds for i in r}
    assert state.memory["clients"].keys() == heard
    for i in heard:
        np.testing.assert_allclose(state.memory["clients"][i]["1.weight"], own[i], **close)
    assert state.server_round == len(rounds)
    assert np.abs(c).max() > 0.001
    assert state.surrogate["1.weight"].dtype == torch.float64


def test_the_first_correction_is_zero_and_then_differs_by_client():
    first = scaffold.down(ServerState(0, {"1.weight": torch.tensor(X0)}), 0)
    assert not first.tensors["1.weight"].any()
    assert first.numbers == {}
    state = federation([(0, 1)], 3)
    sent = [scaffold.down(state, i).tensors["1.weight"] for i in range(3)]
    assert not torch.equal(sent[0], sent[1])
    assert torch.equal(sent[2], state.memory["server"]["1.weight"]), "not heard yet"


def test_with_everyone_heard_the_servers_control_is_the_mean_of_the_clients():
    memory = federation([(0, 1, 2)] * 3, 3).memory
    mean = sum(memory["clients"][i]["1.weight"] for i in range(3)) / 3
    torch.testing.assert_close(memory["server"]["1.weight"], mean)


def test_an_advance_leaves_the_state_it_was_given_alone():
    state = federation([(0, 1)], 3)
    before = {i: c["1.weight"].clone() for i, c in state.memory["clients"].items()}
    server = state.memory["server"]["1.weight"].clone()
    replies = [ask(state, i) for i in (0, 2)]
    scaffold.advance(state, replies, 3, client_lr=ETA, server_lr=ETA_G)
    assert state.memory["clients"].keys() == before.keys()
    assert all(torch.equal(state.memory["clients"][i]["1.weight"], v) for i, v in before.items())
    assert torch.equal(state.memory["server"]["1.weight"], server)


LIES = {
    "missing": Extra(),
    "other": Extra(numbers={"stairs": 3}),
    "more": Extra(numbers={"steps": 3, "stairs": 3}),
    "float": Extra(numbers={"steps": 3.0}),
    "truth": Extra(numbers={"steps": True}),
    "zero": Extra(numbers={"steps": 0}),
    "negative": Extra(numbers={"steps": -2}),
    "huge": Extra(numbers={"steps": 10**12}),
    "tensors": Extra({"1.weight": torch.zeros(3, 4)}, {"steps": 3}),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_about_the_steps_are_refused(lie):
    # 40 images in batches of 32, twice, are 4 steps.
    config = ClientConfig(epochs=2, batch_size=32)
    assert "steps" in wrong(LIES[lie], 40, config=config)
    assert wrong(Extra(numbers={"steps": 4}), 40, config=config) == ""


def test_no_more_steps_count_than_the_examples_that_count_make():
    config = ClientConfig(epochs=2, batch_size=32)
    update = ClientUpdate(0, {}, 4000, extra=Extra(numbers={"steps": 250}))
    heard = capped([update, replace(update, num_examples=40)], config)
    assert [u.extra.numbers["steps"] for u in heard] == [250, 4]


@pytest.mark.parametrize("steps", [None, 2.5, 0, 10**12])
def test_a_lie_on_the_wire_is_set_aside(steps, tmp_path):
    def lie(message, reply):
        numbers = reply.content["extra-numbers"]
        del numbers["steps"]
        if steps is not None:
            numbers["steps"] = steps
        return reply

    ended = run(tmp_path / "run", method="scaffold", tamper=spoil(lie), num_server_rounds=1)
    [rejected] = ended.of("client-rejected")
    assert (rejected["partition_id"], rejected["reply"]) == (1, "malformed")
    assert "steps" in rejected["reason"]
    assert [e["partition_id"] for e in ended.of("client-reply")] == [0, 2]


def test_through_both_apps_a_correction_travels_down_and_steps_up(tmp_path):
    sent = []

    def keep(message, reply):
        sent.append((message.content, reply.content))
        return reply

    ended = run(tmp_path / "run", method="scaffold", tamper=spoil(keep), client__epochs=2)
    plain = run(tmp_path / "plain", method="fedavg", client__epochs=2)
    for (down, up), other in zip(sent, plain.of("client-reply")[1::3], strict=True):
        assert set(down) == {"arrays", "config", "extra"}
        assert set(up) == {"arrays", "metrics", "extra-numbers"}
        assert up["extra-numbers"]["steps"] == 2 * -(-other["num_examples"] // 32)
    corrections = [down["extra"].to_torch_state_dict() for down, _ in sent]
    assert not any(c.any() for c in corrections[0].values())
    assert any(c.any() for c in corrections[1].values())
    for done, other in zip(ended.rounds, plain.rounds, strict=True):
        assert 1.9 < done["bytes_down"] / other["bytes_down"] < 2.1
        assert done["bytes_up"] < 1.05 * other["bytes_up"]
    assert ended.rounds[0]["replies"]["accepted"] == 3
    assert ended.rounds[1]["loss"] != plain.rounds[1]["loss"]


@pytest.mark.parametrize("said", [{"client__momentum": 0.9}, {"client__weight_decay": 0.01}])
def test_momentum_and_decay_of_the_client_are_refused(said, tmp_path):
    sentence = "must be 0 under method = 'scaffold', whose control variates are plain SGD's"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        run(tmp_path / "run", method="scaffold", **said)
