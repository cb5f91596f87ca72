"""Laws of the roster: each node is asked once, waiting ends, identities stay apart."""

import logging
import re
import time
from types import SimpleNamespace

import pytest
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from feddgm_flwr import config
from feddgm_flwr.federation import messages, roster
from feddgm_flwr.federation.messages import Identity
from feddgm_flwr.federation.settings import RoundsConfig


class Nodes(Grid):
    """A grid whose nodes say who they are; None keeps silent.

    ``parts`` is what all say of the data's division, or node -> what it says.
    """

    def __init__(self, identities, parts=9, widths=None):
        self.identities, self.parts, self.widths = identities, parts, widths or {}
        self.asked, self.answers, self.lives, self.pulls = [], {}, [], 0
        self.spoil = lambda node, content: content

    set_run = run = create_message = send_and_receive = None

    def get_node_ids(self):
        return list(self.identities)

    def push_messages(self, questions):
        for question in questions:
            node = question.metadata.dst_node_id
            number = f"{len(self.asked)}"
            question.metadata.__dict__["_message_id"] = number
            self.asked.append(node)
            self.lives.append(question.metadata.ttl)
            identity = self.identities[node]
            if identity is not None:
                parts = self.parts[node] if isinstance(self.parts, dict) else self.parts
                content = messages.identity_content(
                    Identity(identity, parts, self.widths.get(node, 0))
                )
                self.answers[number] = Message(content=self.spoil(node, content), reply_to=question)
        return [str(i) for i in range(len(self.asked))]

    def pull_messages(self, message_ids):
        self.pulls += 1
        there = sorted(set(message_ids) & self.answers.keys(), reverse=True)
        return [self.answers.pop(i) for i in there]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(roster, "POLL_S", 0.001)


def made(min_clients=1, **said):
    return roster.Roster(**{"min_clients": min_clients, "wait_s": 0.05, **said})


def lines(caplog, level=logging.ERROR):
    return [r.getMessage() for r in dict.fromkeys(caplog.records) if r.levelno == level]


def test_each_node_is_asked_once():
    nodes, known = Nodes({30: 1, 20: 0}), made()
    assert known.online(nodes) == {0: 20, 1: 30}
    assert list(known.online(nodes)) == [0, 1]
    assert sorted(nodes.asked) == [20, 30]


def test_a_node_that_joins_later_is_asked_then():
    nodes, known = Nodes({20: 0}), made()
    known.online(nodes)
    nodes.identities[40] = 5
    assert known.online(nodes) == {0: 20, 5: 40}
    assert nodes.asked == [20, 40]


@pytest.fixture
def clock(monkeypatch):
    """Let time go by only while somebody sleeps."""
    now = SimpleNamespace(at=1000.0)
    monkeypatch.setattr(roster, "POLL_S", 1.0)
    monkeypatch.setattr(
        roster,
        "time",
        SimpleNamespace(monotonic=lambda: now.at, sleep=lambda s: setattr(now, "at", now.at + s)),
    )
    return now


def test_a_silent_node_is_asked_again_but_waited_for_no_more(clock, caplog):
    nodes, known, waited = Nodes({20: 0, 30: None}), made(wait_s=300.0), []
    for _ in range(4):
        began = clock.at
        assert known.online(nodes) == {0: 20}
        waited.append(clock.at - began)
        clock.at += 600
    assert waited == [300, roster.NEWCOMER_S, 0, 0]
    assert nodes.asked.count(30) == 4
    assert [x for x in lines(caplog, logging.WARNING) if "node 30" in x] == [
        "node 30 is left out: it has not answered yet who it is"
    ]
    nodes.identities[30] = 1
    assert known.online(nodes) == {0: 20, 1: 30}
    assert known.left_out == {}


class Slow(Nodes):
    """A grid as Flower's: nodes take some time to answer, and what comes after its time is lost."""

    def __init__(self, identities, clock, delays):
        super().__init__(identities)
        self.clock, self.delays, self.questions = clock, delays, {}

    def push_messages(self, questions):
        ids = super().push_messages(questions)
        for question in questions:
            self.questions[question.metadata.message_id] = question, self.clock.at
        return ids

    def pull_messages(self, message_ids):
        come = []
        for i in sorted(message_ids):
            question, at = self.questions[i]
            if self.clock.at > at + question.metadata.ttl:
                gone = Error(code=ErrorCode.MESSAGE_UNAVAILABLE, reason="Message Unavailable")
                come.append(Message(gone, reply_to=question))
            elif self.clock.at >= at + self.delays.get(question.metadata.dst_node_id, 0.0):
                come += super().pull_messages({i})
        return come


def test_a_slow_newcomer_takes_part_once_it_has_answered_in_whatever_round(clock):
    nodes = Slow({20: 0}, clock, {30: 40.0})
    known = made(wait_s=300.0)
    known.online(nodes)
    nodes.identities[30] = 1
    assert known.online(nodes) == {0: 20}
    clock.at += 3600  # a long round
    assert known.online(nodes) == {0: 20, 1: 30}


def test_an_answer_that_the_superlink_has_dropped_is_a_silence(clock):
    nodes = Slow({20: 0}, clock, {30: 40.0})
    known = made(wait_s=300.0)
    known.online(nodes)
    nodes.identities[30] = 1
    known.online(nodes)
    clock.at += 2 * roster.LIVES_S
    nodes.delays = {}
    assert known.online(nodes) == {0: 20, 1: 30}


def test_a_node_that_is_put_right_unseen_is_asked_again():
    nodes, known = Nodes({20: 0, 30: 1, 40: 2}, widths={40: 8}), made(widths=(32,))
    nodes.spoil = lambda node, content: RecordDict() if node == 30 else content
    for _ in range(3):
        assert known.online(nodes) == {0: 20}
    assert nodes.asked.count(30) == nodes.asked.count(40) == 3
    nodes.spoil, nodes.widths = lambda node, content: content, {}
    assert known.online(nodes) == {0: 20, 1: 30, 2: 40}
    assert known.left_out == {}


def test_a_node_that_left_is_not_online_and_its_successor_takes_its_place():
    nodes, known = Nodes({20: 0, 30: 1}), made()
    known.online(nodes)
    del nodes.identities[20]
    nodes.identities[50] = 0
    assert known.online(nodes) == {0: 50, 1: 30}


def test_of_two_with_one_partition_id_the_first_stays_and_both_are_named(caplog):
    nodes, known = Nodes({20: 0}), made()
    known.online(nodes)
    nodes.identities[10] = 0
    for _ in range(3):
        assert known.online(nodes) == {0: 20}
    records = dict.fromkeys(r for r in caplog.records if r.levelno == logging.ERROR)
    [line] = [r.getMessage() for r in records]
    assert "nodes 20 and 10 both say partition-id = 0" in line


def test_waiting_ends_with_a_sentence():
    with pytest.raises(roster.TooFewClientsError, match=r"= 3 clients must .* got 2; start"):
        made(min_clients=3).online(Nodes({20: 0, 30: 1}))


def test_the_sentence_names_the_keys_to_change():
    with pytest.raises(roster.TooFewClientsError) as caught:
        made(min_clients=3).online(Nodes({20: 0}))
    named = re.findall(r"[a-z]+\.[a-z-]+", str(caught.value))
    assert named == ["rounds.min-clients", "rounds.node-wait-s"]
    assert set(named) <= config.settings().keys()


def test_the_population_is_all_parts_of_the_data_or_else_all_that_were_ever_known():
    parts, known = Nodes({20: 0, 30: 1}), made()
    known.online(parts)
    assert known.population == 9

    own, heard = Nodes({20: 4, 30: 7}, parts=0), made()
    heard.online(own)
    assert heard.population == 2
    del own.identities[20]
    own.identities |= {40: 11, 50: 7}
    heard.online(own)
    assert heard.population == 3


def test_a_width_that_the_run_lacks_is_left_out_with_a_sentence(caplog):
    nodes = Nodes({20: 0, 30: 1, 40: 2}, widths={30: 16, 40: 64})
    known = roster.Roster(min_clients=1, wait_s=0.05, widths=(32, 16))
    assert known.online(nodes) == {0: 20, 1: 30}
    assert [known.said_width(node) for node in (20, 30)] == [0, 16]
    assert "node 40 is left out: it says surrogate-width = 64" in caplog.text
    assert "have 16 or 32" in caplog.text


def test_a_width_that_is_none_is_left_out(caplog):
    nodes = Nodes({20: 0, 30: 1}, widths={30: -1})
    assert made().online(nodes) == {0: 20}
    assert "surrogate-width must be a whole number >= 0" in caplog.text


def test_nonsense_is_left_out(caplog):
    nodes, known = Nodes({20: 0, 30: 1}), made()
    nodes.spoil = lambda node, content: RecordDict() if node == 30 else content
    assert known.online(nodes) == {0: 20}
    assert "node 30 is left out: partition-id" in caplog.text


def test_who_was_known_before_a_resume_counts_as_one_of_the_clients():
    some = roster.Roster(min_clients=1, wait_s=0.1, partitions=3, clients=[0, 7])
    assert some.clients == [0, 7]
    assert some.population == 3
    assert roster.Roster(min_clients=1, wait_s=0.1, clients=range(5)).population == 5


def test_a_silent_node_that_left_is_asked_at_once_when_it_returns():
    nodes, known = Nodes({20: 0, 30: None}), made()
    for _ in range(3):
        known.online(nodes)
    assert 30 in known.left_out
    del nodes.identities[30]
    known.online(nodes)
    assert 30 not in known.left_out
    nodes.identities[30] = 1
    assert known.online(nodes) == {0: 20, 1: 30}


def test_a_known_node_that_was_away_is_there_again_without_a_question():
    nodes, known = Nodes({20: 0, 30: 1}), made()
    known.online(nodes)
    gone = nodes.identities.pop(30)
    assert known.online(nodes) == {0: 20}
    nodes.identities[30] = gone
    assert known.online(nodes) == {0: 20, 1: 30}
    assert nodes.asked == [20, 30]


def test_a_doubted_node_is_asked_anew_and_may_be_another_client_then():
    nodes, known = Nodes({20: 0, 30: 1}, widths={30: 16}), made(widths=(32, 16), takeover=False)
    known.online(nodes)
    nodes.identities[30], nodes.widths = 2, {}
    known.doubt(30)
    known.doubt(30)
    assert known.online(nodes) == {0: 20, 2: 30}
    assert nodes.asked == [20, 30, 30]
    assert known.said_width(30) == 0
    assert known.clients == [0, 1, 2]
    # What it was is free for another.
    nodes.identities[40] = 1
    assert known.online(nodes) == {0: 20, 1: 40, 2: 30}


def test_a_doubted_node_that_does_not_answer_takes_no_part():
    nodes, known = Nodes({20: 0, 30: 1}), made()
    known.online(nodes)
    nodes.identities[30] = None
    known.doubt(30)
    assert known.online(nodes) == {0: 20}
    assert known.clients == [0, 1]
    known.doubt(99)  # of whom nothing is known
    assert known.online(nodes) == {0: 20}


def test_a_silent_newcomer_holds_up_a_round_by_its_patience_alone_and_may_answer_later(monkeypatch):
    monkeypatch.setattr(roster, "NEWCOMER_S", 0.02)
    nodes, known = Nodes({20: 0}), made(wait_s=60.0)
    known.online(nodes)
    nodes.identities[30] = None
    began = time.monotonic()
    assert known.online(nodes) == {0: 20}
    assert 0.02 <= time.monotonic() - began < 10
    nodes.identities[30] = 1
    nodes.answers["1"] = Message(
        content=messages.identity_content(Identity(1, 9)), reply_to=questioned(nodes, 30)
    )
    assert known.online(nodes) == {0: 20, 1: 30}
    assert nodes.asked == [20, 30]


def questioned(nodes, node):
    question = Message(RecordDict(), dst_node_id=node, message_type="query.whoami")
    question.metadata.__dict__["_message_id"] = str(nodes.asked.index(node))
    return question


def test_questions_outlive_a_round():
    nodes = Nodes({20: 0})
    made(wait_s=7.0).online(nodes)
    assert nodes.lives == [roster.LIVES_S]
    assert 10 * RoundsConfig.timeout_s < roster.LIVES_S


def test_the_wait_says_who_is_missing(monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="feddgm_flwr")
    monkeypatch.setattr(roster, "SAY_S", 0.01)
    nodes = Nodes({20: 0, 30: 2, 40: None}, parts=4)
    with pytest.raises(roster.TooFewClientsError):
        made(min_clients=3, wait_s=0.1).online(nodes)
    said = lines(caplog, logging.INFO)
    assert re.fullmatch(
        r"waiting: 2 of rounds.min-clients = 3 clients are online; missing: 1, 3; "
        r"not answered yet: node 40; 0 s left",
        said[0],
    )
    assert 2 <= len(said) <= 11


def test_a_line_names_few_of_many(monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="feddgm_flwr")
    monkeypatch.setattr(roster, "SAY_S", 0.0)
    with pytest.raises(roster.TooFewClientsError):
        made(min_clients=3, wait_s=0.01).online(Nodes({20: 0}, parts=500))
    assert "missing: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 489 more;" in lines(caplog, logging.INFO)[0]


def test_the_owner_of_a_partition_id_takes_its_place_back():
    nodes, known = Nodes({20: 0, 30: 1}), made()
    known.online(nodes)
    del nodes.identities[20]
    nodes.identities[10] = 0
    assert known.online(nodes) == {0: 10, 1: 30}
    nodes.identities[20] = 0
    assert known.online(nodes) == {0: 20, 1: 30}
    assert known.left_out == {10: "node 20 says partition-id = 0 too"}
    assert known.owners == {0: 20, 1: 30}


def test_who_comes_first_after_a_resume_does_not_displace_the_owner():
    known = made(owners={0: 20, 1: 30})
    assert known.online(Nodes({10: 0, 20: 0, 30: 1})) == {0: 20, 1: 30}


def test_without_takeover_nobody_answers_for_an_owner_who_is_away():
    nodes, known = Nodes({20: 0, 30: 1}), made(takeover=False)
    known.online(nodes)
    del nodes.identities[20]
    nodes.identities[10] = 0
    assert known.online(nodes) == {1: 30}
    assert known.left_out == {10: "node 20 says partition-id = 0 too"}
    nodes.identities[20] = 0
    assert known.online(nodes) == {0: 20, 1: 30}


@pytest.mark.parametrize("lie", [(2**63, 0), (0, 10**9), (2**63, 2**63 + 1), (10**9 + 1, 0)])
def test_an_id_or_a_number_of_parts_beyond_belief_is_left_out(lie, caplog):
    nodes, known = Nodes({20: 0, 30: 1}), made()
    metrics = messages.identity_content(Identity(*lie))
    nodes.spoil = lambda node, content: metrics if node == 20 else content
    assert known.online(nodes) == {1: 30}
    assert (known.partitions, known.num_partitions, known.population) == (9, 9, 9)
    assert "must be at most 1000000000 and 100000" in known.left_out[20]


def test_a_first_node_that_lies_of_the_parts_is_outvoted_before_a_model_rests_on_it():
    nodes, known = Nodes({20: 0}, parts={20: 77, 30: 9, 40: 9}), made()
    assert known.online(nodes) == {0: 20}
    nodes.identities |= {30: 1, 40: 2}
    assert known.online(nodes) == {1: 30, 2: 40}
    assert known.left_out == {20: "it says num-partitions = 77, the others 9"}
    assert known.owners == {1: 30, 2: 40}
    assert (known.partitions, known.clients) == (9, [1, 2])


def test_who_ever_had_data_of_its_own_is_noted_also_after_a_resume():
    nodes = Nodes({20: 0, 30: 1, 40: 7}, parts={20: 9, 30: 0, 40: 0, 50: 9})
    known = made(own_data=[5])
    known.online(nodes)
    assert known.own_data == {1, 5, 7}
    del nodes.identities[30]
    nodes.identities[50] = 1
    known.online(nodes)
    assert known.own_data == {1, 5, 7}


def test_who_is_left_out_says_nothing_of_anybodys_data():
    known = made()
    assert known.online(Nodes({20: 0, 30: 0}, parts={20: 9, 30: 0})) == {0: 20}
    assert not known.own_data


def test_once_settled_no_vote_changes_the_parts():
    nodes, known = Nodes({20: 0}, parts={20: 9, 30: 5, 40: 5}), made()
    known.online(nodes)
    known.settle()
    nodes.identities |= {30: 1, 40: 2}
    assert known.online(nodes) == {0: 20}
    assert set(known.left_out) == {30, 40}


def test_a_tie_is_waited_out_and_ends_with_a_sentence():
    nodes = Nodes({20: 0, 30: 1}, parts={20: 9, 30: 5})
    with pytest.raises(ValueError, match=r"same for all nodes, got 5 and 9; .* rounds.partitions"):
        made().online(nodes)
    assert nodes.pulls >= 1
    assert made(partitions=9).online(Nodes({20: 0, 30: 1}, parts={20: 9, 30: 5})) == {0: 20}


def test_a_run_that_goes_on_without_clients_names_them_once(caplog):
    caplog.set_level(logging.INFO, logger="feddgm_flwr")
    nodes = Nodes({20: 0, 30: 1, 40: 2}, parts=3)
    known = made()
    known.online(nodes)
    assert lines(caplog, logging.WARNING) == []
    del nodes.identities[20], nodes.identities[40]
    for _ in range(2):
        known.online(nodes)
    assert lines(caplog, logging.WARNING) == ["the run goes on with 1 of 3 clients; missing: 0, 2"]
    nodes.identities |= {20: 0, 40: 2}
    known.online(nodes)
    assert "all 3 clients are online" in lines(caplog, logging.INFO)


def test_clients_of_before_a_resume_are_missed(caplog):
    made(clients=(0, 4)).online(Nodes({30: 4}, parts=0))
    assert lines(caplog, logging.WARNING) == ["the run goes on with 1 of 2 clients; missing: 0"]
