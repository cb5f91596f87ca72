"""Laws of screening: order leaves no trace, one reply a client, each bad one with its reason."""

import itertools

import pytest
import torch
from flwr.app import Error, Message

from feddgm_flwr.core.local import Task
from feddgm_flwr.core.state import ClientUpdate, Extra
from feddgm_flwr.federation import messages
from feddgm_flwr.federation.screening import SetAside, screen

TEMPLATE = {"w": torch.zeros(2)}
ASKED = {"m0": 4, "m1": 2, "m2": 9}
EXPECTED = dict.fromkeys((4, 2, 9), messages.Expected(TEMPLATE, 3, False, lambda extra, count: ""))


def question(number):
    content = messages.task_content(Task(TEMPLATE, 1))
    message = Message(content=content, dst_node_id=50 + number, message_type="train")
    message.metadata.__dict__["_message_id"] = f"m{number}"
    return message


def reply(number, partition_id, value=1.0, extra=None):
    update = ClientUpdate(
        partition_id, {"w": torch.full((2,), value)}, 5 + number, extra=extra or Extra()
    )
    content = messages.reply_content(update, train_loss=0.5, seconds=1.5)
    return Message(content=content, reply_to=question(number))


def failed(number):
    return Message(Error(code=2, reason="no power"), reply_to=question(number))


def test_replies_are_sorted_by_partition_id_whatever_their_order():
    replies = [reply(0, 4), reply(1, 2), reply(2, 9)]
    for order in itertools.permutations(replies):
        got = screen(order, ASKED, EXPECTED)
        assert [u.partition_id for u in got.updates] == [2, 4, 9]
        assert [u.num_examples for u in got.updates] == [6, 5, 7]
        assert got.set_aside == ()


def test_what_a_client_says_of_itself_is_kept_for_the_log():
    [first, *_] = screen([reply(1, 2)], ASKED, EXPECTED).accepted
    assert (first.train_loss, first.seconds) == (0.5, 1.5)
    assert first.num_bytes == messages.content_bytes(reply(1, 2))


def test_the_silent_are_late():
    got = screen([reply(1, 2)], ASKED, EXPECTED)
    assert got.set_aside == (
        SetAside(4, "late", "it did not answer in time"),
        SetAside(9, "late", "it did not answer in time"),
    )
    assert (got.count("late"), got.count("failed"), got.count("malformed")) == (2, 0, 0)


@pytest.mark.parametrize("code", [3, 4])
def test_a_message_whose_time_is_up_is_late_whoever_says_so(code):
    expired = Message(Error(code=code, reason="Message Unavailable"), reply_to=question(0))
    got = screen([expired], {"m0": 4}, EXPECTED)
    assert got.set_aside == (SetAside(4, "late", "it did not answer in time"),)


def test_the_failed_are_not_late():
    got = screen([failed(0), reply(1, 2), reply(2, 9)], ASKED, EXPECTED)
    assert got.set_aside == (SetAside(4, "failed", "the client failed: no power"),)
    assert [u.partition_id for u in got.updates] == [2, 9]


def test_an_impostor_is_named_by_who_was_asked_and_harms_nobody():
    got = screen([reply(0, 2), reply(1, 2), reply(2, 9)], ASKED, EXPECTED)
    [aside] = got.set_aside
    assert aside == SetAside(4, "malformed", "it calls itself partition 2, unlike before", 5)
    assert [u.num_examples for u in got.updates] == [6, 7]


def test_of_two_answers_the_first_counts():
    got = screen([reply(0, 4), reply(0, 4, 2.0)], {"m0": 4}, EXPECTED)
    [update] = got.updates
    assert update.params["w"].tolist() == [1.0, 1.0]
    assert [s.reason for s in got.set_aside] == ["it answered twice; the first one counts"]


def test_an_answer_to_nobodys_question_is_a_stray():
    got = screen([reply(7, 4)], {"m0": 4}, EXPECTED)
    assert got.updates == []
    assert got.set_aside == (
        SetAside(None, "malformed", "it answers no message of this round"),
        SetAside(4, "late", "it did not answer in time"),
    )


@pytest.mark.parametrize("value", [float("nan"), 0.0, 1e9])
def test_parameters_that_cannot_be_believed_are_set_aside(value):
    got = screen([reply(0, 4, value)], {"m0": 4}, EXPECTED)
    assert got.updates == []
    assert (got.set_aside[0].partition_id, got.set_aside[0].kind) == (4, "malformed")


def test_what_the_method_finds_wrong_is_set_aside():
    def wrong(extra, num_examples):
        return "" if extra.numbers == {"steps": 3} else "it must send 3"

    expected = dict.fromkeys((4, 2), messages.Expected(TEMPLATE, 3, False, wrong))
    good, bad = Extra(numbers={"steps": 3}), Extra(numbers={"steps": 4})
    got = screen([reply(0, 4, extra=good), reply(1, 2, extra=bad)], {"m0": 4, "m1": 2}, expected)
    assert [u.partition_id for u in got.updates] == [4]
    assert got.set_aside == (SetAside(2, "malformed", "it must send 3", 6),)


def test_nobody_asked_is_nothing_said():
    got = screen([], {}, EXPECTED)
    assert (got.accepted, got.set_aside, got.updates) == ((), (), [])


def test_whatever_judging_meets_is_set_aside_with_its_kind():
    def wrong(extra, num_examples):
        raise RecursionError("round and round")

    expected = {4: messages.Expected(TEMPLATE, 3, False, wrong), 2: EXPECTED[2]}
    got = screen([reply(0, 4), reply(1, 2)], {"m0": 4, "m1": 2}, expected)
    assert [u.partition_id for u in got.updates] == [2]
    [aside] = got.set_aside
    assert (aside.partition_id, aside.kind) == (4, "malformed")
    assert aside.reason == "the reply cannot be judged (RecursionError: round and round)"
