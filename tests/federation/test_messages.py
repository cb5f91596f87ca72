"""Laws of the wire format: what goes in comes out, and nonsense is turned away with a sentence."""

import math
import re

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from feddgm_flwr.core.evaluation import Evaluation
from feddgm_flwr.core.local import Task
from feddgm_flwr.core.state import ClientUpdate, Extra
from feddgm_flwr.federation import messages
from feddgm_flwr.federation.messages import Identity, Rejection

TEMPLATE = {"b.weight": torch.zeros(2, 3), "a.bias": torch.ones(3)}
MOVED = {"b.weight": torch.full((2, 3), 0.5), "a.bias": torch.ones(3)}
NOTHING = Extra()


EXTRA = Extra({"c": torch.arange(3.0), "a": torch.zeros(1)}, {"steps": 7, "share": 0.5})


def broadcast(extra=NOTHING):
    content = messages.task_content(Task(TEMPLATE, 3, extra))
    return Message(content=content, dst_node_id=7, message_type="train")


def reply(params=MOVED, extra=NOTHING, **changes):
    """Return a good reply with some of its metrics changed (None removes one)."""
    update = ClientUpdate(4, params, 12, None, extra)
    content = messages.reply_content(update, train_loss=0.5, seconds=1.5)
    # Past the record's own check of types: the bytes of a reply obey nobody.
    data = content.metric_records["metrics"].__dict__["_data"]
    for key, value in changes.items():
        data[key.replace("_", "-")] = value
        if value is None:
            del data[key.replace("_", "-")]
    return Message(content=content, reply_to=broadcast())


def parse(message, *, wrong=lambda extra, count: "", may_stay=False):
    expected = messages.Expected(TEMPLATE, 3, True, wrong, may_stay=may_stay)
    return messages.parse_reply(message, expected)


def same(a, b):
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


names = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.int64])
shapes = st.lists(st.integers(1, 4), max_size=3)


@st.composite
def params(draw):
    keys = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    return {key: (100 * torch.randn(draw(shapes), generator=rng)).to(draw(dtypes)) for key in keys}


@given(params())
@settings(deadline=None, max_examples=50)
def test_tensors_survive_the_wire_with_type_shape_and_order(given_params):
    sent = messages.to_record(given_params)
    there = ArrayRecord({k: Array(a.dtype, a.shape, a.stype, a.data) for k, a in sent.items()})
    back = messages.from_record(there)
    assert list(back) == list(given_params)
    for name, value in given_params.items():
        assert back[name].dtype == value.dtype
        assert torch.equal(back[name], value)


@given(
    st.integers(0, 10**6),
    st.integers(1, 10**6),
    st.lists(st.integers(0, 50), min_size=3, max_size=3),
    st.booleans(),
)
@settings(deadline=None, max_examples=50)
def test_an_update_survives_the_wire(partition_id, examples, counts, shares):
    counts[0] += 1
    update = ClientUpdate(
        partition_id,
        MOVED,
        sum(counts) if shares else examples,
        tuple(counts) if shares else None,
    )
    content = messages.reply_content(update, train_loss=0.1, seconds=2.0)
    got = parse(Message(content=content, reply_to=broadcast()))
    assert isinstance(got, ClientUpdate)
    assert (got.partition_id, got.num_examples, got.label_counts) == (
        update.partition_id,
        update.num_examples,
        update.label_counts,
    )
    assert list(got.params) == list(TEMPLATE)
    assert all(torch.equal(got.params[k], MOVED[k]) for k in MOVED)


@pytest.mark.parametrize("extra", [NOTHING, EXTRA])
def test_a_task_survives_the_wire(extra):
    got = messages.read_task(broadcast(extra))
    assert got.server_round == 3
    assert same(got.params, TEMPLATE)
    assert same(got.extra.tensors, extra.tensors)
    assert got.extra.numbers == extra.numbers
    assert [type(n) for n in got.extra.numbers.values()] == [int, float][: len(extra.numbers)]


def test_a_plain_task_is_parameters_and_a_round_alone():
    assert set(broadcast().content) == {"arrays", "config"}
    assert dict(broadcast().content["config"]) == {"server-round": 3}
    assert set(broadcast(EXTRA).content) == {"arrays", "config", "extra", "extra-numbers"}


def test_what_a_method_adds_comes_back_and_is_judged_by_it():
    heard = []

    def wrong(extra, count):
        heard.append((extra, count))
        return "it is too loud"

    got = parse(reply(extra=EXTRA))
    assert same(got.extra.tensors, EXTRA.tensors)
    assert got.extra.numbers == EXTRA.numbers
    assert parse(reply(extra=EXTRA), wrong=wrong) == Rejection("it is too loud")
    [(extra, count)] = heard
    assert (extra.numbers, count) == (EXTRA.numbers, got.num_examples)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_a_method_adds_must_be_finite(value):
    tensors = parse(reply(extra=Extra({"c": torch.tensor([value])})))
    assert tensors == Rejection("what it sends beside holds NaN or infinity")
    numbers = parse(reply(extra=Extra(numbers={"steps": value})))
    assert isinstance(numbers, Rejection)
    assert "a finite number was expected" in numbers.reason


def test_a_list_where_a_method_expects_a_number_is_rejected():
    message = reply(extra=EXTRA)
    message.content["extra-numbers"]["steps"] = [1, 2]
    got = parse(message)
    assert isinstance(got, Rejection)
    assert "a finite number was expected, got [1, 2]" in got.reason


def test_label_counts_stay_at_home_unless_shared():
    record = reply().content.metric_records["metrics"]
    assert set(record) == {"num-examples", "partition-id", "train-loss", "seconds"}


BAD_TENSORS = {
    "unknown": ({**MOVED, "c": torch.ones(1)}, r"missing \[\], unknown \['c'\]"),
    "missing": ({"a.bias": torch.ones(3)}, r"missing \['b.weight'\]"),
    "shape": ({**MOVED, "b.weight": torch.ones(3, 2)}, r"shape \(2, 3\), got \(3, 2\)"),
    "dtype": (
        {**MOVED, "a.bias": torch.ones(3).double()},
        "float32, got torch.float64",
    ),
    "nan": ({**MOVED, "a.bias": torch.full((3,), math.nan)}, "NaN or infinity"),
    "infinite": ({**MOVED, "a.bias": torch.full((3,), math.inf)}, "NaN or infinity"),
    "unmoved": (TEMPLATE, "did not move"),
    "runaway": ({**MOVED, "a.bias": torch.full((3,), 1e30)}, "beyond the believable"),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_bad_tensors_are_rejected(case):
    tensors, reason = BAD_TENSORS[case]
    got = parse(reply(tensors))
    assert isinstance(got, Rejection)
    assert re.search(reason, got.reason)


def test_where_the_loss_allows_it_a_reply_may_be_what_was_sent():
    assert not isinstance(parse(reply(TEMPLATE), may_stay=True), Rejection)


BAD_COUNTS = [0, -1, True, math.nan, 12.0, math.inf, 10**12, None, [12]]


@pytest.mark.parametrize("count", BAD_COUNTS)
def test_absurd_example_counts_are_rejected(count):
    got = parse(reply(num_examples=count))
    assert isinstance(got, Rejection)
    assert "num-examples must be" in got.reason


@pytest.mark.parametrize("partition_id", [-1, True, 1.5, None])
def test_impossible_partition_ids_are_rejected(partition_id):
    got = parse(reply(partition_id=partition_id))
    assert isinstance(got, Rejection)
    assert "partition-id must be" in got.reason


@pytest.mark.parametrize("counts", [[12], [4, 4, 5], [13, -1, 0], 12, [4.0, 4.0, 4.0]])
def test_label_counts_that_do_not_add_up_are_rejected(counts):
    got = parse(reply(label_counts=counts))
    assert isinstance(got, Rejection)
    assert "label-counts must be" in got.reason


def test_records_of_other_names_are_rejected():
    content = RecordDict({"weights": messages.to_record(MOVED), "metrics": MetricRecord()})
    got = parse(Message(content=content, reply_to=broadcast()))
    assert isinstance(got, Rejection)


def test_bytes_that_are_no_array_are_rejected():
    junk = ArrayRecord({"b.weight": Array("float32", (2, 3), "numpy.ndarray", b"junk")})
    content = RecordDict({"arrays": junk, "metrics": MetricRecord({"num-examples": 1})})
    got = parse(Message(content=content, reply_to=broadcast()))
    assert isinstance(got, Rejection)
    assert "cannot be read" in got.reason


def test_an_error_is_a_rejection_with_its_reason():
    got = parse(Message(Error(code=2, reason="out of memory"), reply_to=broadcast()))
    assert got == Rejection("the client failed: out of memory")


def test_a_score_survives_the_wire_and_bad_ones_do_not():
    def sent(accuracy, loss, n):
        content = messages.evaluation_content(Evaluation(accuracy, loss), n)
        return messages.parse_evaluation(Message(content=content, reply_to=broadcast()))

    assert sent(0.5, 1.25, 8) == (Evaluation(0.5, 1.25), 8)
    for bad in ((1.5, 1.0, 8), (math.nan, 1.0, 8), (0.5, math.inf, 8), (0.5, 1.0, 0)):
        assert isinstance(sent(*bad), Rejection)


def test_identity_comes_from_the_node_config():
    assert Identity.of({"partition-id": 1, "num-partitions": 2}) == Identity(1, 2)
    assert Identity.of({"partition-id": 5, "data-dir": "/somewhere"}) == Identity(5, 0)
    told = {"partition-id": 1, "num-partitions": 2, "surrogate-width": 16}
    assert Identity.of(told) == Identity(1, 2, 16)
    for bad in (
        {},
        {"partition-id": 2, "num-partitions": 2},
        {"partition-id": "0"},
        {"partition-id": 0},
        {"partition-id": True, "num-partitions": 2},
        told | {"surrogate-width": "16"},
        told | {"surrogate-width": -16},
    ):
        with pytest.raises(ValueError, match="node-config"):
            Identity.of(bad)


def test_size_counts_every_record_and_errors_weigh_nothing():
    assert messages.content_bytes(broadcast()) > 9 * 4
    error = Message(Error(code=2, reason="x"), reply_to=broadcast())
    assert messages.content_bytes(error) == 0


def test_label_counts_that_nobody_asked_for_are_no_reply():
    expected = messages.Expected(TEMPLATE, 3, False, lambda extra, count: "")
    told = messages.parse_reply(reply(label_counts=[4, 4, 4]), expected)
    assert told == messages.Rejection("it sends label-counts, which nobody asked for")


@pytest.mark.parametrize("value", ["", b"", [""], [], "abc", [1, 2], True])
def test_the_size_of_any_record_can_be_told(value):
    message = reply()
    size = messages.content_bytes(message)
    message.content["more"] = ConfigRecord({"key": value})
    sizes = {"abc": 3, True: 1}
    more = sizes.get(value, 0) if not isinstance(value, list) else 8 * len([v for v in value if v])
    assert messages.content_bytes(message) == size + len("key") + more


@pytest.mark.parametrize("many", [1, 5000])
def test_a_name_of_megabytes_is_cut_out_of_every_reason(many):
    long = {f"{i}{'x' * (3_000_000 // many)}": torch.ones(1) for i in range(many)}
    got = parse(reply({**MOVED, **long}))
    assert isinstance(got, Rejection)
    assert len(got.reason) <= messages.REASON_LENGTH


@pytest.mark.parametrize(
    "changes", [{"loss": 1.7e308}, {"loss": -1.7e308}, {"num-examples": 2**63}, {"accuracy": [0.5]}]
)
def test_a_score_beyond_belief_is_rejected(changes):
    content = messages.evaluation_content(Evaluation(0.5, 1.0), 8)
    for key, value in changes.items():
        content["metrics"][key] = value
    message = Message(content=content, reply_to=broadcast())
    assert isinstance(messages.guarded(lambda: messages.parse_evaluation(message)), Rejection)


@pytest.mark.parametrize("told", [{"partition-id": 10**9 + 1}, {"num-partitions": 10**5 + 1}])
def test_a_node_config_beyond_belief_is_refused_on_the_device(told):
    said = {"partition-id": 1, "num-partitions": 2, **told}
    with pytest.raises(ValueError, match="node-config"):
        Identity.of(said)
