"""Laws of events: every kind survives its line, and no content of a log stops its reader."""

import json
import math
import re
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feddgm_flwr import events
from feddgm_flwr.events import (
    KINDS,
    PHASES,
    ClientRejected,
    ClientReply,
    DistillProgress,
    Follower,
    Phase,
    PhaseEnd,
    PhaseStart,
    Recorded,
    RoundEnd,
    RoundStart,
    RunEnd,
    TrainingFailed,
    Unknown,
    from_line,
    read,
    to_line,
)

# Half a surrogate is what Python makes of a file name that is no UTF-8; two halves that fit are one
# character to JSON, and Python makes no first halves.
TEXT = st.text(st.characters(), max_size=20).filter(
    lambda text: not re.search("[\ud800-\udbff][\udc00-\udfff]", text)
)
FLOATS = st.floats(allow_infinity=False)
LEAVES = {
    int: st.integers(-(2**63), 2**63),
    float: FLOATS,
    str: TEXT,
    bool: st.booleans(),
    NoneType: st.none(),
}


def values(hint):
    """What a field of this type may hold and a line can carry."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return st.sampled_from(args)
    if origin is tuple:
        return st.lists(values(args[0]), max_size=3).map(tuple)
    if origin is Mapping:
        return st.dictionaries(TEXT, values(args[1]), max_size=3)
    if origin is UnionType:
        # NaN is told as null, and null is None where a field may be None.
        no_nan = NoneType in args
        kinds = [st.floats(allow_nan=False, allow_infinity=False) if a is float and no_nan
                 else values(a) for a in args]  # fmt: skip
        return st.one_of(kinds)
    return LEAVES[hint]


def any_fields(cls):
    return st.fixed_dictionaries({n: values(hint) for n, hint in get_type_hints(cls).items()})


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(data=st.data(), time=st.floats(0, 1e10))
def test_every_kind_survives_its_line(kind, data, time):
    event = KINDS[kind](**data.draw(any_fields(KINDS[kind])))
    line = to_line(event, time)
    assert "\n" not in line
    said = json.loads(line)
    assert list(said)[:4] == ["v", "time", "kind", "round"]
    assert (said["v"], said["kind"]) == (1, kind)
    # By repr, since NaN is not equal to itself and a list must not pass for a tuple.
    assert repr(from_line(line)) == repr(Recorded(time, event))


def test_kinds_are_the_names_of_the_classes_and_each_phase_has_its_sentence():
    assert len(KINDS) == 26
    assert KINDS["distill-progress"] is DistillProgress
    assert KINDS["run-end"] is RunEnd
    assert tuple(PHASES) == get_args(Phase)


PROGRESS = {"partition_id": 3, "iteration": 1, "iterations": 9, "loss": 0.5, "eta_s": 65.0}
LINE = {"v": 1, "time": 5.0, "kind": "distill-progress", "round": 2, **PROGRESS}
EVENT = DistillProgress(round=2, **PROGRESS)


def changed(**fields):
    return json.dumps(LINE | fields)


def without(name):
    return json.dumps({k: v for k, v in LINE.items() if k != name})


def nested(deep, kind="moon-phase"):
    return changed(kind=kind, a=0).replace('"a": 0', '"a": ' + "[" * deep + "]" * deep)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_become_null_and_then_nan(value):
    event = RoundEnd(
        round=1, accuracy={"surrogate": value}, loss={}, seconds=value, bytes_up=1, bytes_down=2,
        replies={}, kept="", eta_s=0.0, federated=None, metrics={"worst": {"surrogate": value}},
    )  # fmt: skip
    said = json.loads(to_line(event, 1.0), parse_constant=pytest.fail)
    assert said["accuracy"] == {"surrogate": None}
    assert said["metrics"] == {"worst": {"surrogate": None}}
    back = from_line(to_line(event, 1.0)).event
    assert math.isnan(back.seconds)
    assert math.isnan(back.accuracy["surrogate"])
    assert math.isnan(back.metrics["worst"]["surrogate"])


def test_null_stays_none_where_a_field_may_be_none():
    reply = ClientReply(
        round=1, partition_id=0, num_examples=5, train_loss=None, seconds=math.inf, num_bytes=9
    )
    assert from_line(to_line(reply, 1.0)).event.train_loss is None
    assert from_line(to_line(reply, 1.0)).event.seconds is None


def test_an_integer_is_a_number_and_a_number_beyond_floats_is_nan():
    assert from_line(changed(loss=1)).event.loss == 1.0
    assert math.isnan(from_line(changed(loss=0).replace('"loss": 0', '"loss": 1e999')).event.loss)


def test_unknown_fields_are_ignored():
    assert from_line(changed(mood="good", more=[{}])) == Recorded(5.0, EVENT)


def test_a_new_word_needs_a_new_schema():
    line = to_line(PhaseStart(round=1, phase="save"), 1.0).replace('"save"', '"upload"')
    assert from_line(line) is None
    newer = from_line(line.replace('"v": 1', '"v": 2')).event
    assert newer == Unknown(round=1, kind="phase-start", fields={"phase": "upload"})


def test_an_unknown_kind_is_kept_as_it_is():
    line = '{"v": 1, "time": 5.0, "kind": "moon-phase", "round": 4, "phase": "full", "a": [1, {}]}'
    event = Unknown(round=4, kind="moon-phase", fields={"phase": "full", "a": [1, {}]})
    assert from_line(line) == Recorded(5.0, event)
    assert json.loads(to_line(event, 5.0)) == json.loads(line)


def test_an_unknown_kind_need_not_have_a_round():
    assert from_line('{"v": 1, "time": 5, "kind": "x"}').event == Unknown(
        round=0, kind="x", fields={}
    )


def test_no_number_of_an_unknown_kind_is_infinite():
    event = from_line('{"v": 1, "time": 5, "kind": "x", "a": [1e999, NaN, 2]}').event
    assert event.fields == {"a": [None, None, 2]}


def test_a_newer_schema_is_read_as_far_as_it_fits():
    assert from_line(changed(v=2, more=1)).event == EVENT
    [other] = [from_line(changed(v=2, loss={"total": 1})).event]
    assert (type(other), other.round, other.kind) == (Unknown, 2, "distill-progress")
    assert other.fields["loss"] == {"total": 1}


FOREIGN = {
    "nothing": "",
    "an array": "[1,2]",
    "null": "null",
    "a number": "7",
    "words": "Traceback (most recent call last):",
    "half a line": changed()[:40],
    "two lines glued": changed() + changed(),
    "half a line glued": changed()[:40] + changed(),
    "rubbish": bytes(range(256)).decode("latin-1"),
    "zeros": "\0" * 100,
    "empty object": "{}",
    "brackets without end": "[" * 100_000,
    "deep nesting": nested(100_000),
    "deep nesting in a known kind": nested(100_000, "distill-progress"),
    "too deep to walk": nested(2000),
    "an integer of 5,000 digits": changed(loss=0).replace('"loss": 0', '"loss": ' + "9" * 5000),
    "an integer beyond floats": changed(loss=10**400),
    "no version": without("v"),
    "no time": without("time"),
    "null for time": changed(time=None),
    "words for time": changed(time="noon"),
    "no kind": without("kind"),
    "a list for kind": changed(kind=[1]),
    "no round": without("round"),
    "words for a round": changed(round="two"),
    "a boolean for a round": changed(round=True),
    "a fraction for a round": changed(round=1.5),
    "null for an integer": changed(iteration=None),
    "a boolean for a number": changed(loss=True),
    "words for a number": changed(loss="low"),
    "an object for a number": changed(loss={}),
    "a field is missing": without("eta_s"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_is_no_event_is_none(what):
    assert from_line(FOREIGN[what]) is None


@pytest.mark.parametrize(
    ("event", "field", "value"),
    [
        (RoundStart(round=1, rounds=2, clients=(1,), online=1), "clients", ["one"]),
        (RoundStart(round=1, rounds=2, clients=(1,), online=1), "clients", {"1": 1}),
        (RoundStart(round=1, rounds=2, clients=(1,), online=1), "clients", None),
        (events.Scored(round=1, accuracy={}, loss={}), "accuracy", {"surrogate": "high"}),
        (events.Scored(round=1, accuracy={}, loss={}), "accuracy", [0.5]),
        (PhaseEnd(round=1, phase="save", seconds=1.0), "phase", 3),
        (ClientRejected(round=1, partition_id=1, reply="late", reason=""), "partition_id", "one"),
    ],
)
def test_a_field_of_another_type_is_no_event(event, field, value):
    said = json.loads(to_line(event, 1.0))
    assert from_line(json.dumps(said))
    assert from_line(json.dumps(said | {field: value})) is None


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
        max_leaves=5,
    ),
    st.sampled_from(sorted(LINE)),
)
def test_no_value_of_any_field_is_an_error(value, field):
    recorded = from_line(changed(**{field: value}))
    assert recorded is None or to_line(recorded.event, recorded.time)


# The reader.

STORY = [
    RoundStart(round=1, rounds=2, clients=(0, 7), online=9),
    TrainingFailed(round=1, model="größe", reason='"\\ 小\u2028'),
    RunEnd(round=1, status="completed", reason=""),
]
LINES = [
    (to_line(event, 1.0 + i) + "\n").replace("\\u00f6", "ö").encode()
    for i, event in enumerate(STORY)
]
WHOLE = b"".join(LINES)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "events.jsonl"


def told(recorded):
    return [r.event for r in recorded]


def append(path, data):
    with path.open("ab") as file:
        file.write(data)


@pytest.mark.parametrize("first", ["nothing", "file"])
def test_wherever_the_log_stands_when_it_is_read_no_event_is_lost(path, first):
    for cut in range(len(WHOLE) + 1):
        path.unlink(missing_ok=True)
        if first == "file":
            path.touch()
        follower = Follower(path)
        assert follower.poll() == []
        append(path, WHOLE[:cut])
        before = told(follower.poll())
        assert len(before) == WHOLE[:cut].count(b"\n")
        assert follower.poll() == []
        append(path, WHOLE[cut:])
        assert before + told(follower.poll()) == STORY
        assert (follower.broken, follower.restarted) == (0, 0)


def test_wherever_a_log_is_cut_it_is_read_anew(path):
    for cut in range(len(WHOLE)):
        path.write_bytes(WHOLE)
        follower = Follower(path)
        assert told(follower.poll()) == STORY
        with path.open("r+b") as file:
            file.truncate(cut)
        assert told(follower.poll()) == STORY[: WHOLE[:cut].count(b"\n")]
        assert follower.restarted == 1
        append(path, WHOLE[cut:])
        follower.poll()
        assert (follower.broken, follower.restarted) == (0, 1)


def test_a_log_that_was_cut_and_is_longer_again_is_read_anew(path):
    path.write_bytes(LINES[0])
    follower = Follower(path)
    follower.poll()
    path.write_bytes(LINES[1] + LINES[0] + LINES[2])
    assert told(follower.poll()) == [STORY[1], STORY[0], STORY[2]]
    assert follower.restarted == 1


def test_a_log_that_was_replaced_is_read_anew(path):
    path.write_bytes(b"foreign\n" + LINES[0] + LINES[1][:20])
    follower = Follower(path)
    follower.poll()
    assert follower.broken == 1
    other = path.with_name("other")
    other.write_bytes(path.read_bytes() + LINES[1][20:])
    other.replace(path)
    assert told(follower.poll()) == STORY[:2]
    assert (follower.broken, follower.restarted) == (1, 1)


def test_a_log_that_is_removed_and_comes_again_is_read_anew(path):
    path.write_bytes(WHOLE)
    follower = Follower(path)
    follower.poll()
    path.unlink()
    assert follower.poll() == []
    path.write_bytes(WHOLE)
    assert told(follower.poll()) == STORY
    assert follower.restarted == 1


def test_a_log_may_be_in_a_folder_that_is_not_there_yet(tmp_path):
    follower = Follower(str(tmp_path / "run" / "events.jsonl"))
    assert follower.poll() == []
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "events.jsonl").write_bytes(WHOLE)
    assert told(follower.poll()) == STORY


def test_foreign_lines_are_counted_and_the_rest_is_read(path):
    foreign = [text.encode("utf-8", "surrogatepass") for text in FOREIGN.values()]
    foreign = [data for data in foreign if data.strip() and b"\n" not in data]
    foreign.append(b"\xff\xfe\x80{")
    path.write_bytes(LINES[0] + b"\n".join(foreign) + b"\n\n \r\n" + LINES[1])
    follower = Follower(path)
    assert told(follower.poll()) == STORY[:2]
    assert follower.broken == len(foreign)


def test_text_that_is_no_utf_8_costs_a_letter_and_not_the_line(path):
    path.write_bytes(LINES[1].replace("ö".encode(), b"\xff"))
    [recorded] = read(path)
    assert recorded.event.model == "gr�\u00dfe"


@pytest.mark.parametrize("chunk", [1, 7, 64, len(WHOLE), 10_000])
def test_a_large_log_is_read_in_parts(path, monkeypatch, chunk):
    monkeypatch.setattr(events, "CHUNK_BYTES", chunk)
    path.write_bytes(WHOLE)
    follower, polls, found = Follower(path), 0, []
    while True:
        found += told(follower.poll())
        polls += 1
        if not follower.behind:
            break
    assert found == STORY
    assert polls == len(WHOLE) // chunk + 1
    assert follower.restarted == 0
    assert told(read(path)) == STORY


@pytest.mark.parametrize("chunk", [16, 10_000])
def test_a_line_without_end_is_dropped_counted_once_and_not_kept(path, monkeypatch, chunk):
    limit = max(map(len, LINES))
    monkeypatch.setattr(events, "LINE_BYTES", limit)
    monkeypatch.setattr(events, "CHUNK_BYTES", chunk)
    path.write_bytes(LINES[0] + b"x" * (5 * limit))
    follower = Follower(path)
    found = follower.poll()
    while follower.behind:
        found += follower.poll()
        assert len(follower._half) <= limit
    assert told(found) == STORY[:1]
    assert follower.broken == 1
    append(path, b"y" * 10 + b"\n" + LINES[1] + b"z" * (limit + 1) + b"\n" + LINES[2])
    found = follower.poll()
    while follower.behind:
        found += follower.poll()
    assert told(found) == STORY[1:]
    assert follower.broken == 2


def test_a_log_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(OSError, match=str(tmp_path)):
        Follower(tmp_path).poll()


def test_a_log_that_does_not_exist_holds_nothing(path):
    assert read(path) == []
