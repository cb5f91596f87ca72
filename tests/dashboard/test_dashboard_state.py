"""What a log folds into: numbers of a run that are known by hand."""

import json
import math
import random
import re
import tomllib

import dashboard_logs as logs
import pytest

from feddgm_flwr.config import settings
from flwr_dashboard import compare, downloads, metrics, pages, tensorboard, views, words
from flwr_dashboard.ask import Ask
from flwr_dashboard.log import Tail, parse
from flwr_dashboard.pictures import extent
from flwr_dashboard.runs import Opened
from flwr_dashboard.state import MAX_CELLS, MIDDLE, Run, is_warning, standing, take

NOW = logs.T0 + 95


def fold(lines):
    run = Run()
    for line in lines:
        record = parse(line.encode())
        assert record is not None
        take(run, record)
    return run


def test_the_tiles_say_what_the_log_says():
    run = fold(logs.whole(late=[1]))
    tiles = views.tiles(run, standing(run, NOW), NOW)
    assert [(t.name, t.value) for t in tiles] == [
        ("round", "3 of 3"),
        ("best accuracy", "80.0 %"),
        ("over the prior alone", "+30.0 pts"),
        ("clients", "2"),
        ("set aside", "1"),
        ("sent up", "3.0 MB"),
        ("time", "1 min 35 s"),
    ]
    assert tiles[1].note == "surrogate, round 2"


def test_a_client_goes_through_its_states():
    lines = logs.whole()
    seen = []
    run = Run()
    for line in lines:
        take(run, parse(line.encode()))
        if "0" in run.clients:
            seen.append(run.clients["0"].state)
    assert list(dict.fromkeys(seen)) == ["trains", "replied", "done", "idle"]
    asked = logs.line("client-asked", 96, 4, partition_id=0, phase="clients", num_bytes=1)
    arrived = {"partition_id": 0, "phase": "clients", "seconds": 2.5, "num_bytes": 10}
    arrived |= {"error": "out of memory", "metrics": {}}
    run = fold([*lines, asked, logs.line("reply-arrived", 97, 4, **arrived)])
    assert run.clients["0"].state == "failed"
    assert run.rounds[4].parts["0"].reason == "out of memory"
    assert not run.faults
    bad = {"partition_id": 0, "reply": "failed", "reason": "the client failed: out of memory"}
    take(run, parse(logs.line("client-rejected", 98, 4, **bad).encode()))
    assert [said for _, said in run.faults] == [
        "client 0 set aside (failed): the client failed: out of memory"
    ]


@pytest.mark.parametrize("told", [{"phase": "evaluate"}, {}], ids=["phase told", "older log"])
def test_a_score_set_aside_leaves_the_clients_training(told):
    lines = logs.whole(ended=False)
    bad = {"partition_id": 1, "reply": "late", "reason": "no score within 9 s", **told}
    lines += [
        logs.line("phase-start", 93, 3, phase="evaluate"),
        logs.line("client-rejected", 94, 3, **bad),
    ]
    run = fold(lines)
    assert run.rounds[3].parts["1"].outcome == "replied"
    assert run.set_aside() == 0
    assert [said for _, said in run.faults] == ["client 1 set aside (late): no score within 9 s"]


def test_a_picture_of_more_images_than_are_shown_keeps_its_height():
    many = MAX_CELLS + 25
    sprite = {"path": "images/s.png", "side": 2, "across": 10, "owners": [0] * many}
    sprite |= {"labels": [0] * many, "weights": [1.0] * many, "num_images": many}
    run = fold([logs.start(), logs.line("sprite-written", 1, 1, **sprite)])
    assert len(run.rounds[1].sprite.cells) == MAX_CELLS
    assert extent(run.rounds[1].sprite) == (20, 2 * (MAX_CELLS // 10 + 3))
    assert run.left_out == {"images beyond the first 10,000 of a round"}


def test_as_many_images_are_shown_as_a_run_may_draw():
    for key in ("watch.images", "watch.growing"):
        assert settings()[key].about.le == MAX_CELLS


def test_a_heartbeat_says_which_process_it_is():
    run = fold([logs.start(pid=4), logs.line("heartbeat", 9, 1, pid=5, load={})])
    assert run.pid == 5


def test_what_adds_up_is_not_told_of_a_log_that_was_not_read_whole():
    run = fold(logs.whole())
    run.left_out.add(MIDDLE)
    text = metrics.scrape([("a", run, standing(run, NOW))])
    assert 'flwr_run_accuracy{run="a",model="surrogate"} 0.75' in text
    for name in ("best_accuracy", "bytes_total", "replies_total", "phase_seconds_total"):
        assert f"flwr_run_{name}" not in text


def test_the_accuracy_chart_names_first_last_and_control():
    chart = views.accuracy(fold(logs.whole()), "round", 0)
    assert "surrogate from 60.0 % to 75.0 %" in chart.wide
    assert "prior alone 50.0 %" in chart.wide
    assert chart.rows == [["1", "60.0 %"], ["2", "80.0 %"], ["3", "75.0 %"]]


@pytest.mark.parametrize(("axis", "x"), [("bytes", [1.0, 2.0, 3.0]), ("seconds", [0.5, 1.0, 1.5])])
def test_bytes_and_seconds_add_up(axis, x):
    spots, _ = views._spots(fold(logs.whole()), axis)
    assert [spots[n] for n in (1, 2, 3)] == x


def test_how_a_run_stands():
    run = fold(logs.whole())
    assert standing(run, NOW).word == "completed"
    run = fold(logs.whole(ended=False))
    assert standing(run, NOW + 800).word == "running"
    assert standing(run, NOW + 1000).word == "stopped without saying so"
    assert standing(run, NOW, alive=False).word == "stopped without saying so"
    beat = logs.line("heartbeat", 95, 3, pid=4, load={"rss_mb": 12.0})
    run = fold([*logs.whole(ended=False), beat])
    assert standing(run, NOW + 59).word == "running"
    assert standing(run, NOW + 61).word == "stopped without saying so"
    wait = logs.line("phase-start", 95, 3, phase="wait")
    assert standing(fold([*logs.whole(ended=False), wait]), NOW).word == "waiting for clients"
    failed = logs.line("run-end", 95, 3, status="failed", reason="OSError: disk full")
    assert standing(fold([failed]), NOW).why == "OSError: disk full"


def test_a_resumed_run_forgets_what_it_does_anew():
    run = fold(
        [*logs.whole(), logs.line("run-start", 99, 2, method="feddgm", rounds=3, resumed=True)]
    )
    assert sorted(run.rounds) == [0, 1, 2] or sorted(run.rounds) == [1, 2]
    assert run.resumed == 1
    assert standing(run, NOW).word == "running"


def test_what_is_unknown_is_shown_and_changes_nothing():
    run = fold([*logs.whole(), logs.line("coffee-made", 99, 3, cups=2, to=["a"])])
    assert views.said(run.latest)[0].words == "cups 2"
    assert views.said(run.latest)[0].kind == "coffee-made"


def test_the_field_of_replies_shows_who_was_late():
    chart = views.replies(fold(logs.whole(late=[1])), 0)
    assert 'class="m-l" d="M1 1.5h1"' in chart.wide
    assert 'class="m-r" d="M0 0.5h3M0 1.5h1M2 1.5h1"' in chart.wide


def test_time_is_told_by_phase():
    chart = views.rounds_by_phase(fold(logs.whole()), Ask("time", ("a",)), NOW)
    rows = {row[0]: dict(zip(chart.head, row, strict=True)) for row in chart.rows}
    assert (rows["round 1"]["clients"], rows["round 1"]["distill"]) == ("10.0", "20.0")
    assert rows["round 1"]["all"] == "30.0"


def test_settings_go_back_to_flwr_as_they_were():
    run = fold([logs.start(said=[])])
    assert views.run_config(run).splitlines() == [
        'data.name = "mnist5k"',
        "client.momentum = 0.0",
        'recipe = "feddgm"',
    ]
    assert views.run_config(fold([logs.start()])) == 'data.name = "mnist5k"'


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.class-names", 'cat \U0001f431, "dog"\\'),
        ("x", "a\u202eb\x7fc\n\td"),
        ('a"b <', 1),
        ("c.d", False),
    ],
)
def test_settings_are_toml_that_says_the_same(key, value):
    run = fold([logs.start(config={key: value}, said=[])])
    written = views.run_config(run)
    assert written.isprintable()
    assert flattened(tomllib.loads(written)) == {key: value}


def test_half_a_character_is_none():
    run = fold([logs.start(config={"x": "\ud83d"}, said=[])])
    assert views.run_config(run) == 'x = "?"'


def flattened(tree, above=""):
    """Return a tree's leaves by dotted keys."""
    leaves = {}
    for key, value in tree.items():
        inner = isinstance(value, dict)
        leaves |= flattened(value, f"{above}{key}.") if inner else {above + key: value}
    return leaves


def test_tables_for_other_programs():
    run = fold(logs.whole(late=[1]))
    rounds = downloads.rounds_csv(run).splitlines()
    assert rounds[0].startswith("round,seconds,bytes_up,bytes_down,accuracy surrogate")
    assert rounds[-1] == "3,30.0,1000000,2000000,0.75,0.5,10.0,20.0"
    clients = downloads.clients_csv(run).splitlines()
    assert clients[1].startswith("1,0,replied,50,4.0,0.25,500000,,1,1.0,0.5,8.0,")
    assert clients[4].startswith("2,1,late,")
    assert json.loads(downloads.run_json(run))["config"]["data.name"] == "mnist5k"
    assert downloads._csv(["=1+1"], [["@x"]]) == "'=1+1\n'@x\n"


def test_metrics_are_what_prometheus_reads():
    parser = pytest.importorskip("prometheus_client.parser", reason="no prometheus_client")
    run = fold(logs.whole(late=[1]))
    name = 'a "quoted"\\name\n'
    text = metrics.scrape([(name, run, standing(run, NOW))])
    families = {f.name: f for f in parser.text_string_to_metric_families(text)}
    samples = {
        f: {tuple(sorted(s.labels.items())): s.value for s in families[f].samples} for f in families
    }
    assert samples["flwr_run_accuracy"] == {(("model", "surrogate"), ("run", name)): 0.75}
    assert samples["flwr_run_bytes"][("direction", "up"), ("run", name)] == 3e6
    assert samples["flwr_run_replies"][("outcome", "late"), ("run", name)] == 1
    assert samples["flwr_run_replies"][("outcome", "replied"), ("run", name)] == 5
    assert samples["flwr_run_state"][("run", name), ("state", "completed")] == 1
    assert samples["flwr_run_phase_seconds"][("phase", "distill"), ("run", name)] == 60


def test_tensorboard_gets_the_same_numbers():
    assert tensorboard.scalars(fold(logs.whole()), 2) == {
        "accuracy/surrogate": 0.8,
        "loss/surrogate": 0.5,
        "seconds/clients": 10.0,
        "seconds/distill": 20.0,
        "bytes/up": 1e6,
        "bytes/down": 2e6,
    }


def test_tensorboard_reads_what_its_writer_wrote(tmp_path):
    loader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_file_loader", reason="no tensorboard"
    )
    count = tensorboard.write(fold(logs.whole()), tmp_path)
    (file,) = tmp_path.iterdir()
    said = [
        (e.step, v.tag) for e in loader.EventFileLoader(str(file)).Load() for v in e.summary.value
    ]
    assert len(said) == count
    assert (2, "accuracy/surrogate") in said


def test_texts_of_a_log_can_do_nothing():
    assert words.clean("a\x00b\x1b[31m\u202ec\n") == "a\ufffdb\ufffd[31m\ufffdc "
    assert len(words.clean("x" * 9999)) == 300
    assert words.clean("\ud800") == "\ufffd"
    assert words.clean(10**5000) == "a huge number"


@pytest.mark.parametrize(
    ("said", "expected"),
    [(0.0, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3600, "1 h 00 min")],
)
def test_durations(said, expected):
    assert words.duration(said) == expected


ODD = [None, True, -1, 0, 3, 10**400, 1e308, -0.5, math.nan, "", "x\x00", "<b>", [], [1, "a", None]]
ODD += [{}, {"a": 1.0, "b": "c", "": None}, {"1": [{}]}, [0, 1], [[2]], 2**70, "clients", "failed"]
ODD += [math.inf, {"a": 1e308, "b": -1e308}, {"a": -1e308}, {"a": 1e99, "b": -1e99}]
KINDS = ["run-start", "run-end", "round-start", "round-end", "phase-start", "phase-end"]
KINDS += ["client-asked", "reply-arrived", "client-reply", "client-rejected", "distill-progress"]
KINDS += ["distilled", "train-progress", "scored", "control-scored", "sprite-written", "heartbeat"]
KINDS += ["growth-written", "clients-online", "trained", "client-scored"]
FIELDS = ["partition_id", "clients", "accuracy", "loss", "seconds", "classes", "config", "labels"]
FIELDS += ["owners", "weights", "side", "across", "path", "reply", "status", "phase", "rounds"]
FIELDS += ["iterations", "iteration", "nodes", "left_out", "metrics", "replies", "label_counts"]


@pytest.mark.parametrize("seed", range(6))
def test_no_event_breaks_a_page(seed, tmp_path):
    draw = random.Random(seed)
    run = Run()
    for _ in range(200):
        fields = {name: draw.choice(ODD) for name in draw.sample(FIELDS, draw.randint(0, 12))}
        if draw.random() < 0.5:
            fields |= {
                "path": "a.png",
                "side": 2,
                "across": 3,
                "labels": [0, 3],
                "owners": [0, "x"],
            }
            fields |= {
                "weights": [1, None],
                "iterations": [0, 9],
                "partition_id": draw.choice([0, "x"]),
            }
        kind, number = draw.choice(KINDS), draw.randint(0, 3)
        take(run, {"kind": kind, "time": logs.T0, "round": number, **fields})
    opened = Opened("a", tmp_path, Tail(tmp_path / "log"), run)
    for page in pages.PARTS:
        for ask in (Ask(page, ("a",)), Ask(page, ("a",), 2, "0", 3, "bytes", 1, changed=True)):
            for part in pages.parts(pages.Scene(ask, opened, standing(run, NOW), 0, NOW)):
                assert not re.search(r'(d|x|y|width|height)="[^"]*(nan|inf)', part.html), part.html
    both = [compare.Compared(name, run, order) for order, name in enumerate("ab")]
    compare.curves(both)
    compare.table(both)
    compare.spread(both)
    downloads.rounds_csv(run)
    downloads.clients_csv(run)
    json.loads(downloads.run_json(run))
    metrics.scrape([("a", run, standing(run, NOW))])


def test_a_claim_that_was_cut_is_said_and_a_warning():
    told = {
        "kind": "client-clipped", "round": 1, "time": 1.0, "partition_id": 3,
        "what": "examples", "claimed": 1e9, "counted": 4000.0,
    }  # fmt: skip
    said = "client 3 claims 1.00e+09 (examples), of which 4.00e+03 count"
    assert words.sentence(told) == said
    assert is_warning(told)


UNTOLD = "what 3 asked clients have spent is not known: none has said how many images it has"


@pytest.mark.parametrize(
    ("epsilon", "clients", "unknown", "said"),
    [
        (1.5, {"0": 1.5, "1": 1.0}, 0, "clients have spent at most epsilon 1.500 at delta 0.001"),
        (
            1.5, {"0": 1.5, "1": 1.0}, 3,
            "2 clients have spent at most epsilon 1.500 at delta 0.001; of 3 others that were "
            "asked it is not known",
        ),
        (None, {}, 3, UNTOLD),
        (0.0, {}, 3, UNTOLD),
        (None, {"0": None}, "x", "clients have spent at most epsilon – at delta 0.001"),
    ],
)  # fmt: skip
def test_no_epsilon_is_said_of_clients_of_whom_nothing_is_known(epsilon, clients, unknown, said):
    told = {
        "kind": "privacy-spent", "round": 1, "time": 1.0, "epsilon": epsilon, "delta": 0.001,
        "clients": clients, "unknown": unknown,
    }  # fmt: skip
    assert words.sentence(told) == said
