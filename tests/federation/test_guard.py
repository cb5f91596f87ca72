"""Laws of the guarded grid: one client's bytes spoil one reply, a lost SuperLink is no client's."""

import threading
import time
from concurrent.futures import wait

import grpc
import pytest
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from feddgm_flwr.federation import guard
from feddgm_flwr.federation.guard import GuardedGrid
from feddgm_flwr.federation.messages import Expected
from feddgm_flwr.federation.screening import screen
from flwr_dashboard.grid import WatchedGrid


class Inner(Grid):
    """A grid whose pull raises where it meets a spoilt reply, as Flower's own unpacking does."""

    pull_interval = 0.01

    def __init__(self, spoilt, error):
        self.spoilt, self.error, self.sent = spoilt, error, {}

    def set_run(self, run):
        raise NotImplementedError

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, *args):
        raise NotImplementedError

    def get_node_ids(self):
        return []

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError

    def push_messages(self, messages):
        for number, message in enumerate(messages):
            message.metadata.__dict__["_message_id"] = f"m{number}"
            self.sent[f"m{number}"] = message
        return list(self.sent)

    def pull_messages(self, message_ids):
        if set(message_ids) & self.spoilt:
            raise self.error
        return [Message(RecordDict(), reply_to=self.sent.pop(i)) for i in message_ids]


def questions(count):
    return [Message(RecordDict(), dst_node_id=50 + i, message_type="train") for i in range(count)]


@pytest.mark.parametrize("error", [ValueError("no header"), KeyError("x"), RecursionError()])
def test_a_reply_that_cannot_be_unpacked_is_a_failed_one_and_the_others_come(error):
    grid = WatchedGrid(GuardedGrid(Inner({"m1"}, error)))
    replies = grid.send_and_receive(questions(3), timeout=5)
    by_id = {r.metadata.reply_to_message_id: r for r in replies}
    assert set(by_id) == {"m0", "m1", "m2"}
    assert [by_id[i].has_error() for i in ("m0", "m1", "m2")] == [False, True, False]
    assert "its reply cannot be unpacked" in by_id["m1"].error.reason
    expected = {4: Expected({}, 3, False, lambda extra, count: "")}
    [aside] = screen([by_id["m1"]], {"m1": 4}, expected).set_aside
    assert (aside.partition_id, aside.kind) == (4, "failed")


class Stalling(Inner):
    """A grid that waits within a pull for what a dying device has announced, as Flower's does."""

    def __init__(self, announced):
        super().__init__(set(), None)
        self.announced, self.uploaded, self.pulls = announced, threading.Event(), []

    def pull_messages(self, message_ids):
        self.pulls += message_ids
        if self.announced in message_ids:
            self.uploaded.wait()
        return super().pull_messages(message_ids)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(guard, "PATIENCE_S", 0.05)


@pytest.mark.usefixtures("impatient")
def test_a_device_that_dies_while_it_sends_holds_up_neither_the_others_nor_the_round():
    inner, silent = Stalling("m0"), []
    grid = WatchedGrid(GuardedGrid(inner), silent=silent.append)
    began = time.monotonic()
    replies = grid.send_and_receive(questions(3), timeout=0.5)
    assert 0.5 <= time.monotonic() - began < 5
    assert {r.metadata.reply_to_message_id for r in replies} == {"m1", "m2"}
    assert [asked.message_id for asked in silent] == ["m0"]
    # Whom a pull waits for already is not pulled again.
    assert inner.pulls.count("m0") == 1
    inner.uploaded.set()


def asked_and_slow(inner):
    """Return a grid whose one pull, begun while nothing was there, has ended since."""
    grid = GuardedGrid(inner)
    grid.push_messages(questions(1))
    assert grid.pull_messages({"m0"}) == []
    inner.uploaded.set()
    wait(grid._under_way.values(), 10)
    return grid


@pytest.mark.usefixtures("impatient")
def test_a_slow_reply_comes_with_a_later_pull():
    inner = Stalling("m0")
    come = asked_and_slow(inner).pull_messages({"m0"})
    assert [r.metadata.reply_to_message_id for r in come] == ["m0"]


class SlowlySpoilt(Stalling):
    def pull_messages(self, message_ids):
        super().pull_messages(message_ids)
        raise self.error


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("error", [TimeoutError("bytes"), ValueError("bytes")])
def test_a_slow_reply_that_cannot_be_unpacked_is_a_failed_one(error):
    inner = SlowlySpoilt("m0")
    inner.error = error
    come = asked_and_slow(inner).pull_messages({"m0"})
    assert "its reply cannot be unpacked" in come[0].error.reason


@pytest.mark.usefixtures("impatient")
def test_a_superlink_that_is_lost_during_a_slow_pull_raises_at_the_next():
    inner = SlowlySpoilt("m0")
    inner.error = grpc.RpcError("gone")
    grid = asked_and_slow(inner)
    with pytest.raises(grpc.RpcError, match="gone"):
        grid.pull_messages({"m0"})


class OverHTTP(Exception):
    """What later releases of Flower raise."""

    __module__ = "httpx._exceptions"


class Derived(OverHTTP):
    pass


@pytest.mark.parametrize("kind", [grpc.RpcError, OverHTTP, Derived])
def test_a_lost_superlink_is_nobodys_lie(kind):
    grid = GuardedGrid(Inner({"m0"}, kind("gone")))
    grid.push_messages(questions(1))
    with pytest.raises(kind, match="gone"):
        grid.pull_messages({"m0"})


def test_what_nobody_asked_cannot_be_failed_in_anybodys_name():
    assert GuardedGrid(Inner({"m9"}, ValueError("x"))).pull_messages({"m9"}) == []


def test_what_one_kind_of_grid_alone_has_passes_through():
    assert GuardedGrid(Inner(set(), None)).pull_interval == 0.01
