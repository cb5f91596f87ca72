"""Laws of the guarded grid: one client's bytes spoil one reply, a lost SuperLink is no client's."""

import grpc
import pytest
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

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
    expected = {4: Expected({}, 3, False, lambda extra: "")}
    [aside] = screen([by_id["m1"]], {"m1": 4}, expected).set_aside
    assert (aside.partition_id, aside.kind) == (4, "failed")


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
