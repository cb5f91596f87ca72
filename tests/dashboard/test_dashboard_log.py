"""The tail of a log, whatever happens to the file."""

import os

import dashboard_logs as logs

from flwr_dashboard.log import CHUNK_BYTES, LINE_BYTES, Tail, parse


def drain(tail):
    events = tail.poll()
    while tail.behind and not tail.missing:
        events += tail.poll()
    return events


def test_a_growing_log_is_told_once(tmp_path):
    path = tmp_path / "events.jsonl"
    first, second = logs.whole()[:2]
    path.write_text(first + "\n" + second[:20])
    tail = Tail(path)
    assert [e["kind"] for e in tail.poll()] == ["run-start"]
    assert tail.poll() == []
    with path.open("a") as file:
        file.write(second[20:] + "\n")
    assert [e["kind"] for e in tail.poll()] == ["control-scored"]
    assert tail.broken == 0


def test_a_line_is_no_event_unless_it_is(tmp_path):
    path = tmp_path / "events.jsonl"
    bad = ["[1,2]", "null", "7", '"x"', "{", '{"kind":"a"}', '{"kind":3,"time":1}', "\x00\x01"]
    bad += ['{"kind":"a","time":true}', '{"kind":"a","time":NaN}', '{"kind":"a","time":1e999}']
    bad += ['{"kind":"a","time":1,"round":-1}', '{"kind":"a","time":1,"round":1.5}', "[" * 9999]
    bad += ['{"kind":"a","time":' + "9" * 5000 + "}"]
    path.write_text("\n".join([*bad, "", '{"kind":"odd","time":1}', ""]))
    tail = Tail(path)
    assert [e["kind"] for e in tail.poll()] == ["odd"]
    assert tail.broken == len(bad)


def test_what_is_cut_or_replaced_is_read_anew(tmp_path):
    path = tmp_path / "events.jsonl"
    lines = logs.whole()
    path.write_text("\n".join(lines) + "\n")
    tail = Tail(path)
    assert len(drain(tail)) == len(lines)
    path.write_text(lines[0] + "\n")
    assert (len(drain(tail)), tail.restarted) == (1, 1)
    other = tmp_path / "other"
    other.write_text(lines[1] + "\n" + lines[0] + "\n")
    other.replace(path)
    assert (len(drain(tail)), tail.restarted) == (2, 2)


def test_a_vanished_log_is_said_and_found_again(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text(logs.start() + "\n")
    tail = Tail(path)
    tail.poll()
    path.unlink()
    assert tail.poll() == []
    assert tail.missing == "The log cannot be read: no such file or directory."
    path.write_text(logs.start() + "\n")
    assert len(tail.poll()) == 1
    assert tail.missing == ""


def test_what_is_no_file_is_said(tmp_path):
    folder, pipe = tmp_path / "folder", tmp_path / "pipe"
    folder.mkdir()
    os.mkfifo(pipe)
    for path in (folder, pipe):
        tail = Tail(path)
        assert tail.poll() == []
        assert tail.missing.startswith("The log cannot be read: ")


def test_a_huge_line_is_left_out_and_the_next_is_read(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"x" * (LINE_BYTES + 2 * CHUNK_BYTES) + b"\n" + logs.start().encode() + b"\n")
    tail = Tail(path)
    assert [e["kind"] for e in drain(tail)] == ["run-start"]
    assert tail.broken == 1


def test_a_long_log_is_read_in_parts(tmp_path):
    path = tmp_path / "events.jsonl"
    count = 3 * CHUNK_BYTES // len(logs.start())
    path.write_text((logs.start() + "\n") * count)
    tail = Tail(path)
    assert len(tail.poll()) < count
    assert tail.behind
    assert len(drain(tail)) + len(tail.poll()) < count
    assert not tail.behind


def test_bytes_that_are_no_text_do_not_stop_the_reader():
    assert parse(b'{"kind": "\xff\xfe", "time": 1}')["kind"] == "\ufffd\ufffd"
