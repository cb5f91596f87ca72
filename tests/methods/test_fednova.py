"""Laws of FedNova: the paper's normalised average, with its a_i summed one by one."""

from dataclasses import replace

import linear
import numpy as np
import pytest
from inprocess_run import run, same_models, spoil

from feddgm_flwr.core.local import Task
from feddgm_flwr.core.state import ClientUpdate, Extra, ServerState
from feddgm_flwr.methods import fednova, steps


def cross_entropy(z, onehot):
    return linear.softmax(z) - onehot


def replied(state: ServerState, **config) -> list[ClientUpdate]:
    """Return the three clients' replies, each after so many steps as linear.STEPS says."""
    task = Task(state.surrogate, state.server_round + 1)
    found = []
    for i, n in enumerate((5, 6, 7)):
        walked = linear.walked(i, task, **config)
        extra = steps.up(task, walked, linear.images(i))
        assert extra.numbers == {"steps": walked.steps}
        found.append(ClientUpdate(i, walked.params, n, extra=extra))
    return found


def test_two_rounds_are_the_papers():
    state, x = ServerState(0, linear.tensors(linear.START)), linear.START
    for _ in range(2):
        state = fednova.advance(state, replied(state), momentum=0.0)
        ends = [linear.descended(i, x, cross_entropy) for i in range(3)]
        shares, taus = np.array([5, 6, 7]) / 18, np.array(linear.STEPS)
        # d_i is the mean gradient along the way: (x - y_i) / (eta tau_i).
        d = [
            {k: (x[k] - y[k]) / (linear.LR * t) for k in x} for y, t in zip(ends, taus, strict=True)
        ]
        rate = linear.LR * (shares * taus).sum()
        x = {k: x[k] - rate * sum(p * di[k] for p, di in zip(shares, d, strict=True)) for k in x}
        linear.close(state.surrogate, x)
    assert state.server_round == 2


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("tau", [1, 2, 7])
def test_the_sum_of_a_is_how_far_a_constant_gradient_takes_a_client(momentum, tau):
    buffer = way = 0.0
    for _ in range(tau):
        buffer = momentum * buffer + 1.0
        way += buffer
    assert fednova.total_of(tau, momentum) == pytest.approx(way, rel=1e-12)


def test_with_momentum_the_replies_are_divided_by_their_own_sum_of_a():
    state = ServerState(0, linear.tensors(linear.START))
    replies = replied(state, momentum=0.5)
    found = fednova.advance(state, replies, momentum=0.5).surrogate
    sums, shares = [1 + 1.5, 1 + 1.5 + 1.75, 1], [5 / 18, 6 / 18, 7 / 18]
    effective = sum(p * a for p, a in zip(shares, sums, strict=True))
    for name, x in linear.START.items():
        ways = [(x - u.params[name].numpy()) / a for u, a in zip(replies, sums, strict=True)]
        mean = sum(p * w for p, w in zip(shares, ways, strict=True))
        np.testing.assert_allclose(found[name], x - effective * mean, rtol=1e-12)


def test_with_equal_steps_it_is_the_mean_weighted_by_examples():
    state = ServerState(0, linear.tensors(linear.START))
    replies = [replace(u, extra=Extra(numbers={"steps": 4})) for u in replied(state)]
    found = fednova.advance(state, replies, momentum=0.9).surrogate
    for name, value in found.items():
        mean = sum(n * u.params[name].numpy() for n, u in zip((5, 6, 7), replies, strict=True)) / 18
        np.testing.assert_allclose(value, mean, rtol=1e-12)


def test_through_both_apps_steps_travel_up_and_nothing_down(tmp_path):
    sent = []

    def keep(message, reply):
        sent.append((message.content, reply.content))
        return reply

    ended = run(tmp_path / "run", method="fednova", tamper=spoil(keep), num_server_rounds=1)
    plain = run(tmp_path / "plain", method="fedavg", num_server_rounds=1)
    [(down, up)] = sent
    assert set(down) == {"arrays", "config"}
    assert set(up) == {"arrays", "metrics", "extra-numbers"}
    assert up["extra-numbers"]["steps"] == -(-up["metrics"]["num-examples"] // 32)
    assert not same_models(ended.models, plain.models)


def test_a_reply_whose_steps_cannot_be_believed_is_set_aside(tmp_path):
    told = []

    def lie(message, reply):
        reply.content["extra-numbers"]["steps"] = 0
        told.append(reply.content["metrics"]["num-examples"])
        return reply

    ended = run(tmp_path / "run", method="fednova", tamper=spoil(lie), num_server_rounds=1)
    [rejected], [examples] = ended.of("client-rejected"), told
    assert rejected["reason"] == (
        f"steps must be the {-(-examples // 32)} that {examples} images make, got 0"
    )
