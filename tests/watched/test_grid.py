"""Laws of a watched grid: Flower's semantics, and each reply told when it comes."""

import time

import pytest
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.grid.grid import Run  # it has moved since; this name has not

from flwr_dashboard.grid import WatchedGrid


class Slow(Grid):
    """A grid whose replies come after so many seconds each; None never."""

    pull_interval = 0.01

    def __init__(self, delays, *, refuses=()):
        self.delays, self.refuses, self.sent = delays, refuses, {}
        self.pulled = []

    def set_run(self, run):
        self.set_to = run

    @property
    def run(self):
        return Run.create_empty(run_id=5)

    def create_message(self, *args):
        return args

    def get_node_ids(self):
        return list(self.delays)

    def push_messages(self, messages):
        ids = []
        for message in messages:
            node = message.metadata.dst_node_id
            message.metadata.__dict__["_message_id"] = f"to {node}"
            if node in self.refuses:
                ids.append(None)
                continue
            self.sent[f"to {node}"] = (time.monotonic(), message)
            ids.append(f"to {node}")
        return ids

    def pull_messages(self, message_ids):
        now = time.monotonic()
        self.pulled.append(set(message_ids))
        there = []
        for message_id in sorted(message_ids):
            began, message = self.sent[message_id]
            delay = self.delays[message.metadata.dst_node_id]
            if delay is not None and now - began >= delay:
                there.append(Message(RecordDict(), reply_to=message))
        return there

    def send_and_receive(self, messages, *, timeout=None):
        raise AssertionError("nobody would hear of the replies")


def messages(*nodes):
    return (Message(RecordDict(), dst_node_id=node, message_type="train") for node in nodes)


def watched(grid):
    told = []
    began = time.monotonic()

    def note(what):
        return lambda *about: told.append((what, time.monotonic() - began, about))

    return WatchedGrid(
        grid, sent=note("sent"), arrived=note("arrived"), silent=note("silent")
    ), told


def test_each_reply_is_told_as_it_comes_and_they_return_in_that_order():
    grid, told = watched(Slow({1: 0.3, 2: 0.0, 3: 0.15}))
    replies = grid.send_and_receive(messages(1, 2, 3))
    assert [r.metadata.src_node_id for r in replies] == [2, 3, 1]
    assert [what for what, _, _ in told] == ["sent", "arrived", "arrived", "arrived"]
    assert [m.metadata.message_id for m in told[0][2][0]] == ["to 1", "to 2", "to 3"]
    times = [when for _, when, _ in told[1:]]
    assert times[0] < 0.15 <= times[1] < 0.3 <= times[2]
    for (_, _, (asked, reply, seconds)), delay in zip(told[1:], [0.0, 0.15, 0.3], strict=True):
        assert reply.metadata.reply_to_message_id == asked.message_id
        assert delay <= seconds < delay + 0.14


def test_after_the_timeout_who_is_silent_is_told_and_the_rest_returns():
    grid, told = watched(Slow({1: None, 2: 0.0}))
    began = time.monotonic()
    replies = grid.send_and_receive(messages(1, 2), timeout=0.1)
    assert 0.1 <= time.monotonic() - began < 0.5
    assert [r.metadata.src_node_id for r in replies] == [2]
    assert [(what, about[0].dst_node_id) for what, _, about in told[1:]] == [
        ("arrived", 2),
        ("silent", 1),
    ]


def test_no_time_is_no_time_and_nobody_asked_is_not_waited_for():
    grid, told = watched(Slow({1: 0.0}))
    assert grid.send_and_receive(messages(1), timeout=0) == []
    assert [what for what, *_ in told] == ["sent", "silent"]
    assert grid.send_and_receive([]) == []
    assert grid._grid.pulled == []


def test_what_could_not_be_sent_is_neither_told_nor_waited_for():
    grid, told = watched(Slow({1: 0.0, 2: 0.0}, refuses={2}))
    assert len(grid.send_and_receive(messages(1, 2))) == 1
    assert [m.metadata.dst_node_id for m in told[0][2][0]] == [1]


def test_a_loop_of_ones_own_is_told_too_and_each_reply_once():
    grid, told = watched(Slow({1: 0.0}))
    [message_id] = grid.push_messages(messages(1))
    for _ in range(2):
        grid.pull_messages([message_id])
    assert [what for what, *_ in told] == ["sent", "arrived"]


def test_the_rest_of_a_grid_is_the_grids():
    inner = Slow({4: 0.0})
    grid, _ = watched(inner)
    assert grid.run.run_id == 5
    assert grid.get_node_ids() == [4]
    assert grid.delays is inner.delays
    grid.set_run("r")
    assert inner.set_to == "r"
    assert grid.create_message(1, 2, 3, 4) == (1, 2, 3, 4, None)
    with pytest.raises(AttributeError, match="weather"):
        _ = grid.weather
