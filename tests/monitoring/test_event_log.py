"""Laws of the run log: nothing is lost that was told, and people hear what they want to know."""

import logging
import math
from types import SimpleNamespace

import pytest

from feddgm_flwr.events import (
    ClientAsked,
    ClientRejected,
    ClientReply,
    ControlScored,
    Distilled,
    DistillProgress,
    ImagesDrawn,
    PhaseEnd,
    PhaseStart,
    RoundEnd,
    RoundStart,
    RunEnd,
    RunStart,
    Scored,
    Trained,
    TrainingFailed,
    TrainProgress,
    Unknown,
    from_line,
    read,
    to_line,
)
from feddgm_flwr.monitoring import events
from feddgm_flwr.monitoring.events import EventLog, LogFollower, duration, sentence

START = RoundStart(round=3, rounds=5, clients=(0, 2), online=4)
SAVE = PhaseStart(round=3, phase="save")


def distilling(iteration, *, client=3, eta_s=65.0, loss=0.5):
    return DistillProgress(
        round=1, partition_id=client, iteration=iteration, iterations=9, loss=loss, eta_s=eta_s
    )


def training(epoch, *, model="surrogate"):
    return TrainProgress(round=1, model=model, epoch=epoch, epochs=9, loss=0.5, eta_s=0.0)


def told(folder):
    return [recorded.event for recorded in read(folder / "events.jsonl")]


def raw(folder):
    return (folder / "events.jsonl").read_bytes()


@pytest.fixture
def clock(monkeypatch):
    """Time that goes on when a test says so."""
    clock = SimpleNamespace(now=100.0)
    times = SimpleNamespace(time=lambda: 1e9 + clock.now, monotonic=lambda: clock.now)
    monkeypatch.setattr(events, "time", times)
    return clock


def test_every_event_is_on_the_disk_at_once_and_then_told(tmp_path, clock):
    heard = []

    def listener(event):
        heard.append((event, told(tmp_path)))

    with EventLog(tmp_path / "new" / "..", listener) as log:
        log.emit(START)
        assert heard == [(START, [START])]
    [line, _] = raw(tmp_path).decode().splitlines()
    assert from_line(line).time == 1e9 + 100
    assert heard[1] == (RunEnd(round=3, status="completed", reason=""), told(tmp_path))


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (RuntimeError("no power"), "failed", "RuntimeError: no power"),
        (AssertionError(), "failed", "AssertionError"),
        (KeyboardInterrupt(), "stopped", "KeyboardInterrupt"),
        (SystemExit(3), "stopped", "SystemExit: 3"),
        (GeneratorExit(), "stopped", "GeneratorExit"),
    ],
)
def test_a_run_that_breaks_says_so_at_its_end(tmp_path, error, status, reason):
    log = EventLog(tmp_path)
    log.emit(START)
    with pytest.raises(type(error)), log:
        raise error
    assert told(tmp_path) == [START, RunEnd(round=3, status=status, reason=reason)]


def test_a_run_that_ends_before_its_first_event_ends_in_round_0(tmp_path):
    with EventLog(tmp_path):
        pass
    assert told(tmp_path) == [RunEnd(round=0, status="completed", reason="")]


def test_a_second_log_appends(tmp_path):
    for _ in range(2):
        with EventLog(tmp_path):
            pass
    assert len(told(tmp_path)) == 2
    assert b"\n\n" not in raw(tmp_path)


def test_a_line_cut_by_a_crash_takes_no_other_with_it(tmp_path):
    whole = to_line(START, 1.0).encode()
    for cut in (1, 40, len(whole)):
        (tmp_path / "events.jsonl").write_bytes(whole + b"\n" + whole[:cut])
        with EventLog(tmp_path) as log:
            log.emit(SAVE)
        # A line that lacks nothing but its end is whole again.
        again = [START] if cut == len(whole) else []
        assert told(tmp_path)[:-1] == [START, *again, SAVE]


def test_progress_is_written_at_most_once_a_second_a_client_and_a_model(tmp_path, clock):
    heard = []
    with EventLog(tmp_path, heard.append) as log:
        for step in range(1, 9):
            for event in (distilling(step), distilling(step, client=4), training(step)):
                log.emit(event)
            log.emit(training(step, model="resnet18"))
            clock.now += 0.25
    written = told(tmp_path)[:-1]
    assert [e.iteration for e in written if e in [distilling(i) for i in range(9)]] == [1, 5]
    assert [e.epoch for e in written if e in [training(i) for i in range(9)]] == [1, 5]
    assert len(written) == 4 * 2
    assert len(heard) == 4 * 8 + 1


def test_the_last_step_and_all_that_is_no_progress_are_always_written(tmp_path, clock):
    story = [distilling(1), distilling(9), training(1), training(9), START, START]
    with EventLog(tmp_path) as log:
        for event in story:
            log.emit(event)
    assert told(tmp_path)[:-1] == story


def test_a_listener_that_breaks_is_said_once_and_stops_nobody(tmp_path, caplog):
    heard = []

    def broken(event):
        raise ValueError("cannot draw")

    with EventLog(tmp_path, broken, heard.append) as log:
        log.emit(START)
        log.emit(SAVE)
    assert heard[:2] == told(tmp_path)[:2] == [START, SAVE]
    [message] = caplog.messages
    assert "cannot draw" in message


class FullDisk:
    """Takes ``room`` bytes, seven at a time, and no more."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        if not self.room:
            raise OSError(28, "No space left on device")
        taken = self.file.write(data[: min(7, self.room)])
        self.room -= taken
        return taken

    def fileno(self):
        return self.file.fileno()

    def close(self):
        self.file.close()
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize("room", [0, 1, 50])
def test_a_full_disk_is_said_once_and_what_follows_when_it_has_room_is_whole(
    tmp_path, caplog, room
):
    heard = []
    with EventLog(tmp_path, heard.append) as log:
        log._file._file = disk = FullDisk(log._file._file, room)
        log.emit(START)
        log.emit(START)
        disk.room = 10_000
        log.emit(SAVE)
    assert told(tmp_path) == [SAVE, RunEnd(round=3, status="completed", reason="")]
    assert len(heard) == 4
    [message] = caplog.messages
    assert "No space left" in message


def test_a_value_that_json_lacks_does_not_end_the_run(tmp_path, caplog):
    with EventLog(tmp_path) as log:
        log.emit(Unknown(round=1, kind="moon-phase", fields={"phase": object()}))
        log.emit(START)
    assert told(tmp_path)[0] == START
    assert len(caplog.messages) == 1


def test_progress_is_said_now_and_then(caplog, clock):
    caplog.set_level(logging.INFO)
    follow = LogFollower(every_s=10.0)
    for step in range(1, 9):
        follow(distilling(step))
        follow(training(step))
        clock.now += 4.0
    said = [message.split(",")[0] for message in caplog.messages]
    assert said == [
        "distilling client 3: iteration 1 of 9",
        "distilling client 3: iteration 4 of 9",
        "distilling client 3: iteration 7 of 9",
    ]


REPLY = {"round": 1, "partition_id": 3, "num_examples": 40, "num_bytes": 5}
DISTILLED = {
    "round": 1, "partition_id": 3, "classes": (1, 4), "num_images": 20, "iterations": 9,
    "first_loss": 1.0, "last_loss": 0.25, "student_lr": 0.1, "seconds": 4.04,
}  # fmt: skip
ENDED = {
    "round": 2, "loss": {}, "seconds": 61.25, "bytes_up": 2_340_000, "bytes_down": 1_000_000,
    "replies": {}, "federated": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (START, "round 3 of 5: 2 of 4 clients train"),
        (
            ClientReply(**REPLY, train_loss=0.1234, seconds=2.34),
            "client 3: 40 images, loss 0.123, 2.3 s",
        ),
        (ClientReply(**REPLY, train_loss=None, seconds=None), "client 3: 40 images"),
        (ClientReply(**REPLY, train_loss=math.nan, seconds=math.inf), "client 3: 40 images"),
        (
            ClientRejected(round=1, partition_id=3, reply="late", reason="no reply in 9 s"),
            "client 3 is set aside (late): no reply in 9 s",
        ),
        (
            ClientRejected(round=1, partition_id=None, reply="malformed", reason="asked by nobody"),
            "a stray reply is set aside (malformed): asked by nobody",
        ),
        (
            distilling(1),
            "distilling client 3: iteration 1 of 9, matching loss 0.500; about 1 min 05 s left",
        ),
        (
            distilling(1, loss=math.nan, eta_s=math.nan),
            "distilling client 3: iteration 1 of 9, matching loss not a number",
        ),
        (
            Distilled(**DISTILLED, stopped="", eta_s=0.0),
            "distilled client 3: 20 images of 2 classes, matching loss 1.000 -> 0.250 in 4.0 s",
        ),
        (
            Distilled(**DISTILLED, stopped="converged", eta_s=9.0),
            "distilled client 3: 20 images of 2 classes, matching loss 1.000 -> 0.250 in 4.0 s "
            "(converged); about 9 s left",
        ),
        (training(2), "training surrogate: epoch 2 of 9, loss 0.500"),
        (
            Trained(round=1, model="resnet18", images=80, epochs=9, loss=math.inf, seconds=4.0),
            "trained resnet18 on 80 synthetic images: 9 epochs, loss not a number, 4.0 s",
        ),
        (
            TrainingFailed(round=1, model="surrogate", reason="loss is nan"),
            "training surrogate failed, so it stays as it was: loss is nan",
        ),
        (
            ControlScored(round=0, accuracy={"surrogate": 0.877, "resnet18": 0.5}, loss={}),
            "without any client the prior alone gives surrogate 87.7%, resnet18 50.0%",
        ),
        (
            RoundEnd(**ENDED, accuracy={"surrogate": 0.5}, kept="", eta_s=7800.0),
            "round 2 done: surrogate 50.0% in 61.2 s, 2.3 MB up, 1.0 MB down; "
            "about 2 h 10 min left",
        ),
        (
            RoundEnd(**ENDED, accuracy={}, kept="no reply could be used", eta_s=0.0),
            "round 2 done: not scored in 61.2 s, 2.3 MB up, 1.0 MB down; "
            "the model stays as it was: no reply could be used",
        ),
        (RunEnd(round=2, status="completed", reason=""), "the run is complete"),
        (RunEnd(round=2, status="failed", reason="E: x"), "the run failed: E: x"),
        (
            RunEnd(round=2, status="stopped", reason="KeyboardInterrupt"),
            "the run was stopped: KeyboardInterrupt",
        ),
    ],
)
def test_events_are_said_in_words(event, said):
    assert sentence(event) == said


@pytest.mark.parametrize(
    "event",
    [
        RunStart(
            round=0, method="feddgm", rounds=1, seed=0, resumed=False, config={}, classes=(),
            versions={}, machine={}, pid=1,
        ),
        SAVE,
        PhaseEnd(round=1, phase="save", seconds=1.0),
        ClientAsked(round=1, partition_id=1, phase="clients", num_bytes=1),
        Scored(round=0, accuracy={"surrogate": 0.5}, loss={}),
        ImagesDrawn(round=1, path="images/1.png", num_images=1),
        Unknown(round=1, kind="moon-phase", fields={}),
    ],
    ids=lambda event: type(event).__name__,
)  # fmt: skip
def test_what_a_page_shows_better_is_not_said(event, caplog):
    caplog.set_level(logging.DEBUG)
    LogFollower()(event)
    assert caplog.messages == []


def test_what_went_wrong_is_a_warning(caplog):
    caplog.set_level(logging.INFO)
    follow = LogFollower()
    follow(TrainingFailed(round=1, model="surrogate", reason="nan"))
    follow(ClientRejected(round=1, partition_id=1, reply="failed", reason="no"))
    follow(START)
    assert [r.levelname for r in caplog.records] == ["WARNING", "WARNING", "INFO"]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (59.0, "59 s"), (60.0, "1 min 00 s"), (7800.0, "2 h 10 min")],
)
def test_durations_are_said_as_people_say_them(seconds, said):
    assert duration(seconds) == said
