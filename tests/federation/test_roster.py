"""Laws of the roster: each node is asked once, waiting ends, identities stay apart."""

import logging
import re

import pytest
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from feddgm_flwr import config
from feddgm_flwr.federation import messages, roster
from feddgm_flwr.federation.messages import Identity


class Nodes(Grid):
    """A grid whose nodes say who they are; None keeps silent."""

    def __init__(self, identities, parts=9, widths=None):
        self.identities, self.parts, self.widths = identities, parts, widths or {}
        self.asked = []

    set_run = run = create_message = push_messages = pull_messages = None

    def get_node_ids(self):
        return list(self.identities)

    def send_and_receive(self, questions, *, timeout):
        answers = []
        for number, question in enumerate(questions):
            node = question.metadata.dst_node_id
            question.metadata.__dict__["_message_id"] = f"{len(self.asked)}-{number}"
            self.asked.append(node)
            identity = self.identities[node]
            if identity is not None:
                content = messages.identity_content(
                    Identity(identity, self.parts, self.widths.get(node, 0))
                )
                answers.append(Message(content=content, reply_to=question))
        return answers[::-1]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(roster, "POLL_S", 0.001)


def made(min_clients=1):
    return roster.Roster(min_clients=min_clients, wait_s=0.05)


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


def test_a_silent_node_is_asked_again_and_then_no_more():
    nodes, known = Nodes({20: 0, 30: None}), made()
    for _ in range(4):
        assert known.online(nodes) == {0: 20}
    assert nodes.asked.count(30) == roster.ATTEMPTS


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
    answer = nodes.send_and_receive

    def spoil(questions, *, timeout):
        replies = answer(questions, timeout=timeout)
        replies[0].content = RecordDict()
        return replies

    nodes.send_and_receive = spoil
    assert known.online(nodes) == {0: 20}
    assert "node 30 is left out: partition-id" in caplog.text


def test_who_was_known_before_a_resume_counts_as_one_of_the_clients():
    some = roster.Roster(min_clients=1, wait_s=0.1, partitions=3, clients=[0, 7])
    assert some.clients == [0, 7]
    assert some.population == 3
    assert roster.Roster(min_clients=1, wait_s=0.1, clients=range(5)).population == 5
