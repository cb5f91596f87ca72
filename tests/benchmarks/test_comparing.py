"""The comparison's parts against values worked out by hand, and its runs on a toy."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from beyond_grids import BEYOND
from compare import setting
from comparing import spending, tables, tuning, units
from comparing.entries import ENTRIES, GRID, OURS, roster
from comparing.images import Prepared, divided, fingerprint, prepared, settings_of
from comparing.job import Job
from comparing.parts import PARTS, ROWS
from comparing.plots import curves, spread
from comparing.presets import IMAGES, PRESETS, division, division_name
from comparing.shared import SharedTraining, key_of
from comparing.statistics import estimate, paired, winner
from comparing.store import all_stored, keep, stored
from comparing.units import Unit, comparison, grids, still_so, unit_of
from comparing.work import run_all, run_unit, shared_training, train_client
from inprocess import own_images, quiet, rounds_of, task_of, train_now

from feddgm_flwr import methods
from feddgm_flwr.build import build_tools, first_state
from feddgm_flwr.config import RunConfig
from feddgm_flwr.data.datasets import spec_of
from feddgm_flwr.methods.client import Client

T_4 = 2.7764451052
"""The 97.5 % quantile of Student's t with 4 degrees of freedom, from a printed table."""


# statistics


def test_the_interval_of_five_values_is_students():
    found = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3.0
    assert found.deviation == pytest.approx(math.sqrt(2.5))
    assert found.half == pytest.approx(T_4 * math.sqrt(2.5 / 5))
    assert found.low == pytest.approx(3 - 1.963243161)


def test_one_seed_is_sure_of_nothing():
    assert estimate([0.4]).half == math.inf
    assert not estimate([0.4]).is_certain


def test_differences_are_paired_by_seed_whatever_the_order():
    ours, other = {0: 0.5, 1: 0.9, 2: 0.1}, {2: 0.0, 0: 0.4, 1: 0.8, 7: 1.0}
    found = paired(ours, other)
    assert found.count == 3
    assert found.mean == pytest.approx(0.1)
    assert found.half == pytest.approx(0, abs=1e-9)
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_a_winner_must_surely_lead_every_row():
    sure = {0: 0.5, 1: 0.6, 2: 0.7}
    behind = {0: 0.4, 1: 0.5, 2: 0.61}
    unsure = {0: 0.6, 1: 0.5, 2: 0.6}  # differences -.1, .1, .1: the interval holds zero
    assert winner({"a": sure, "b": behind}) == "a"
    assert winner({"a": sure, "b": behind, "c": unsure}) == ""
    assert winner({"a": sure, "diverged": {0: math.nan, 1: 0.9, 2: 0.9}}) == ""
    one, two = {0: 0.1}, {0: 0.1, 1: 0.59}
    assert winner({"a": sure, "b": behind, "one": one, "two": two}) == "a"
    assert winner({"a": sure, "b": behind, "one": {0: 0.51}}) == ""
    assert winner({"a": sure, "one": one}) == ""
    assert winner({"a": sure, "b": behind, "diverged": dict.fromkeys(range(3), math.nan)}) == "a"


# tables


def record(label, seed, accuracies, *, diverged="", length=2, start=0.1):
    rounds = [
        {
            "round": n,
            "accuracy": {"surrogate": value},
            "asked": 2,
            "down": 2_000_000,
            "up": 4_000_000,
            "clients": {"wall": 9.0, "cpu": 3.0},
            "server": {"wall": 9.0, "cpu": 0.5},
        }
        for n, value in enumerate(accuracies, 1)
    ]
    return {
        "label": label,
        "seed": seed,
        "start": {"surrogate": start},
        "rounds": rounds,
        "length": length,
        "diverged": diverged,
    }


TABLE = """\
| method | r1 | r2 | MB | clients s | server s | seeds |
| --- | --- | --- | --- | --- | --- | --- |
| feddgm | 25.0 ± 7.1 | 45.0 ± 7.1 | 3 | 3 | 0.5 | 2 |
| fedavg | 15.0 ± 7.1 | 30.0 ± 14.1 | 3 | 3 | 0.5 | 2 |
| generator only | 10.0 ± 0.0 | 10.0 ± 0.0 | - | - | - | 2 |
| moon | 5.0 ± 0.0 | diverged | 3 | 3 | 0.5 | 2 |
| central (ceiling) | 90.0 ± 0.0 | 90.0 ± 0.0 | 3 | 3 | 0.5 | 2 |
"""

RECORDS = [
    record(OURS, 0, [0.2, 0.4]),
    record(OURS, 1, [0.3, 0.5]),
    record("fedavg", 0, [0.1, 0.4]),
    record("fedavg", 1, [0.2, 0.2]),
    record("generator only", 0, [], length=0, start=0.1),
    record("generator only", 1, [], length=0, start=0.1),
    record("moon", 0, [0.05, 0.05]),
    record("moon", 1, [0.05], diverged="infinite"),
    record("central", 0, [0.9, 0.9]),
    record("central", 1, [0.9, 0.9]),
]


def test_bold_is_the_highest_mean_that_surely_leads():
    # Ours leads the generator alone by 10 and 20 points: at two seeds that holds zero.
    rows = tables.rows_of(RECORDS, ceilings=["central"])
    assert tables.accuracy_table(rows) == TABLE
    third = [record(OURS, 2, [0.25, 0.45]), record("fedavg", 2, [0.15, 0.3])]
    pair = tables.rows_of([*RECORDS[:4], *third])
    assert "| feddgm | **25.0** ± 5.0 | 45.0 ± 5.0 |" in tables.accuracy_table(pair)


def test_differences_say_none_where_the_interval_holds_zero():
    lines = tables.difference_table(tables.rows_of(RECORDS[:4])).splitlines()
    assert lines[0] == "| feddgm minus | r1 | r2 |"
    # 0 and 30 points at two seeds: 15 +- 12.7062 * 21.2132 / sqrt(2).
    assert lines[2] == "| fedavg | +10.0 [10.0, 10.0] | none: +15.0 [-175.6, 205.6] |"


def test_images_have_a_table_where_a_judge_saw_them():
    assert tables.image_table(RECORDS) == ""
    seen = [
        {"fidelity": {"in-class": 0.2, "nearest": 0.4}, "matching": {"first": 1.0, "last": 0.5}},
        {"fidelity": {"in-class": 0.4, "nearest": 0.6}},
    ]
    judged = [
        {"label": "feddgm", "seed": 0, "rounds": seen},
        {"label": "feddgm", "seed": 1, "rounds": seen[1:]},
    ]
    lines = tables.image_table([*judged, *RECORDS]).splitlines()
    assert lines[0] == "| images: in class, nearest | r1 | r2 | matching loss, r1 |"
    assert lines[2:] == ["| feddgm | 0.30, 0.50 | 0.40, 0.60 | 1.00 to 0.50 |"]


def test_a_trials_table_does_not_take_the_place_of_the_presets(tmp_path):
    for said in ({}, {"client.epochs": 2}):
        how = division(0.1, None)
        preset = PRESETS["mnist5k"].with_trial(said)
        job = Job(preset, how, [], ENTRIES, tmp_path, tmp_path, None)
        images = Prepared({}, "toy", "toy", {"train": 4, "test": 2})
        job._report([record(OURS, 0, [0.5, 0.6])], [], images, [])
    shorter = replace(job, preset=job.preset.with_trial({}).with_rounds(3))
    assert shorter.folder.name == "alpha-0.1-3-rounds"
    own, trial = (tmp_path / name / "table.md" for name in ("alpha-0.1", "alpha-0.1-trial"))
    assert "client.epochs" not in own.read_text()
    assert "client.epochs = 2" in trial.read_text()


def test_a_trial_tells_all_rows_whatever_was_tuned_but_not_what_makes_a_row():
    preset = PRESETS["mnist5k"].with_trial({"client.lr": 0.01, "distill.iterations": 5})
    images = Prepared({}, "toy", "toy", {"train": 4, "test": 2})
    tuned = {"client.lr": 0.05, "union.lr": 0.01}
    for label, iterations in ((OURS, 5), ("feddgm, no descent", 0)):
        entry = next(e for e in ENTRIES if e.label == label)
        unit = unit_of(preset, entry, images, division(0.1, None), 0, tuned)
        told = {key: unit.said[key] for key in ("client.lr", "union.lr", "distill.iterations")}
        assert told == {"client.lr": 0.01, "union.lr": 0.01, "distill.iterations": iterations}
        assert unit.tried == {"union.lr": 0.01}
    for key in ("data.alpha", "seed"):
        with pytest.raises(ValueError, match=f"--set cannot tell {key}; say --alpha"):
            preset.with_trial({key: 1})
    assert images_of_preset(preset) <= set(IMAGES)
    for key in IMAGES:
        with pytest.raises(ValueError, match=f"--set cannot tell {key}: the images are preset"):
            preset.with_trial({key: 1})


def images_of_preset(preset):
    return set(settings_of(preset)) | {"data.root"}


def test_another_prior_is_another_run_wherever_it_lies(tmp_path, monkeypatch):
    def read(prior, spec):
        return SimpleNamespace(fingerprint=(Path(prior.path) / "weights").read_text())

    monkeypatch.setattr(units, "build_prior", read)

    def unit(path):
        return Unit(
            "feddgm",
            0,
            2,
            {"prior.kind": "autoencoder", "prior.path": str(path), "data.name": "mnist5k"},
            "images",
        )

    first, same, other, gone = (tmp_path / name for name in ("a", "same", "other", "gone"))
    for path, weights in ((first, "a"), (same, "a"), (other, "b")):
        path.mkdir()
        (path / "weights").write_text(weights)
    assert unit(first).name == unit(other).name
    done = {"config": unit(first).resolved, "prior": unit(first).prior}
    assert done["prior"] == "a"
    # Where it lies is all the same, and of what is not here, or was not noted, nothing is known.
    known = [still_so(done, unit(path)) for path in (first, same, other, gone)]
    assert known == [True, True, False, True]
    assert still_so({"config": unit(first).resolved}, unit(other))


def test_a_table_keeps_the_rows_and_seeds_that_it_had(tmp_path):
    def ask(labels, seeds):
        job = Job.of(PRESETS["mnist5k"], division(0.1, None), out=tmp_path, committed=tmp_path,
                     data=None, prior=None, labels=labels)  # fmt: skip
        asked = [entry.label for entry in job.entries]
        images = prepared(job.preset, "report", None, tmp_path / "data")
        units = comparison(job.preset, job.entries, images, job.division, seeds, {})
        for unit in units:
            made = {**record(unit.label, unit.seed, [0.5]), "config": unit.resolved}
            keep(tmp_path, unit, made)
        job.compare(seeds, 1, untuned=True, only_list=False, only_report=True)
        runs = json.loads((job.folder / "results.json").read_text())["runs"]
        return asked, [(run["label"], run["seed"]) for run in runs]

    assert ask([OURS, "fedavg"], [0]) == ([OURS, "fedavg"], [(OURS, 0), ("fedavg", 0)])
    assert ask(["fedavg"], [1])[1] == [(OURS, 0), ("fedavg", 0), ("fedavg", 1)]
    assert ask([], []) == ([], [(OURS, 0), ("fedavg", 0), ("fedavg", 1)])


def test_a_table_keeps_a_row_of_what_was_deleted_since(tmp_path):
    job = Job(PRESETS["mnist5k"], division(0.1, None), [], ENTRIES, tmp_path, tmp_path, None)
    job.folder.mkdir()
    whole = {"runs": [record("replayed", 0, [0.5])]}
    (job.folder / "results.json").write_text(json.dumps(whole))
    job.compare([], 1, untuned=True, only_list=False, only_report=True)
    assert json.loads((job.folder / "results.json").read_text())["runs"] == whole["runs"]
    assert "| replayed | 50.0 |" in (job.folder / "table.md").read_text()


def test_a_table_says_where_its_settings_were_chosen_if_elsewhere(tmp_path):
    found = {"chosen": {}, "grid": []}
    about = {"preset": "fashion", "division": dict(division(0.1, None))}
    tuning.save(tmp_path, {OURS: found}, about)
    images = Prepared({}, "toy", "toy", {"train": 4, "test": 2})
    for name, alpha in (("fashion", 0.1), ("fashion", 0.5), ("hundred", 0.1)):
        how = division(alpha, None)
        job = Job(PRESETS[name], how, [], ENTRIES, tmp_path, tmp_path, None, table=name)
        job._report([record(OURS, 0, [0.5])], [], images, [])
        told = "chosen on fashion at alpha 0.1" in (job.folder / "table.md").read_text()
        assert told == ((name, alpha) != ("fashion", 0.1))


def test_a_curve_ends_where_a_run_diverged_and_adds_up_what_was_spent():
    ours, moon = curves([*RECORDS[:2], *RECORDS[6:8]], "client_seconds")
    assert ours.x == (0.0, 3.0, 6.0)
    assert [e.mean for e in ours.y] == pytest.approx([10.0, 25.0, 45.0])
    assert moon.x == (0.0, 3.0)


def test_names_are_moved_apart_and_keep_their_order():
    heights = spread({"a": 0.5, "b": 0.5, "c": 0.9}, gap=0.1)
    assert heights["b"] - heights["a"] >= 0.1 - 1e-12
    assert heights["c"] > heights["b"]
    assert sum(heights.values()) == pytest.approx(1.9)


def on(made, clients, server):
    rounds = [{**r, "clients_on": clients, "server_on": server} for r in made["rounds"]]
    return {**made, "rounds": rounds}


def test_seconds_of_a_gpu_are_the_clocks_and_stand_beside_no_processors():
    fast = on(record("moon", 0, [0.1, 0.2]), "H100", "cpu")
    records = [*RECORDS[:4], fast]
    assert spending.device_of(RECORDS[0], "clients") == "cpu"
    assert spending.of_one_device(records, "clients") == RECORDS[:4]
    assert spending.of_one_device(records, "server") == records
    assert [spending.seconds(fast["rounds"][0], w) for w in spending.WHOM] == [9.0, 0.5]
    costs = {row.name: row.costs for row in tables.rows_of(records)}
    assert costs["moon"].keys() == {"MB", "server s"}
    assert costs["fedavg"]["clients s"] == {0: 3.0, 1: 3.0}
    said = spending.where_made(records)
    assert said == "clients on cpu (feddgm, fedavg), H100 (moon); server on cpu."


# presets, rows, images


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_valid_config_of_every_row(name, tmp_path):
    preset = PRESETS[name]
    said = {**preset.common, **division(0.5, None)}
    if said.get("prior.kind") == "autoencoder":
        said["prior.path"] = str(tmp_path)
    for entry in roster(ENTRIES, wanted=None, conditional=True):
        for tried in entry.grid or ({},):
            config = RunConfig.from_run_config({**said, **tried, "data.partition": "dirichlet",
                                                **{k: v for k, v in entry.wanted.items()
                                                   if k != "data.partition"}})  # fmt: skip
            assert config.method == entry.method


def test_every_grid_is_of_one_size():
    tuned = [e for e in ENTRIES if e.rounds and not e.tuned_as]
    assert {len(e.grid) for e in tuned} == {GRID}
    assert len({e.label for e in ENTRIES}) == len(ENTRIES)


def test_what_lies_beyond_a_grid_is_not_in_it_and_is_of_its_settings():
    for entry in ENTRIES:
        for tried in BEYOND.get(entry.label, ()):
            assert tried not in entry.grid
            assert set(tried) == set(entry.grid[0])


def test_rows_of_unknown_methods_are_left_out_and_unknown_labels_refused():
    labels = [e.label for e in roster(ENTRIES, wanted=None, conditional=False)]
    assert "fedavg" in labels
    assert "generator only" not in labels
    assert all(e.method in methods.names() for e in roster(ENTRIES, wanted=None, conditional=True))
    with pytest.raises(ValueError, match="fedavgg"):
        roster(ENTRIES, wanted=["fedavgg"], conditional=True)


def test_divisions_have_names():
    assert division_name(division(0.05, None)) == "alpha-0.05"
    assert division_name(division(0.1, 2)) == "classes-2"


def numbered(n):
    return np.arange(n).reshape(n, 1, 1, 1), np.arange(n)


def test_tuning_sees_neither_the_clients_images_nor_the_test_images():
    (report, test), (tuning_part, validation) = divided(numbered(6000), numbered(7), 400)
    parts = [set(pair[1].tolist()) for pair in (report, tuning_part, validation)]
    assert [len(p) for p in parts] == [400, 400, 5000]
    assert len(set.union(*parts)) == 5800
    assert len(test[1]) == 7
    order = np.random.default_rng(2026).permutation(6000)
    assert report[1].tolist() == order[:400].tolist()


def test_where_all_images_are_reported_on_a_tenth_is_held_out():
    (report, _), (tuning_part, validation) = divided(numbered(50_000), numbered(7), 0)
    assert len(report[1]) == 50_000
    assert len(validation[1]) == 5000
    assert not set(validation[1]) & set(tuning_part[1])
    with pytest.raises(ValueError, match="whole data set"):
        divided(numbered(100), numbered(7), 40)


def test_a_fingerprint_is_of_content():
    arrays = {"a": np.arange(6), "b": np.zeros(2)}
    assert fingerprint(arrays) == fingerprint(dict(reversed(arrays.items())))
    assert fingerprint(arrays) != fingerprint({**arrays, "a": np.arange(6)[::-1]})


# runs


@pytest.fixture
def unit(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    images = (labels[:, None, None, None] * 120 + rng.integers(0, 80, (40, 16, 16, 1))).astype(
        np.uint8
    )
    np.savez(tmp_path / "toy.npz", train_images=images, train_labels=labels,
             test_images=images, test_labels=labels)  # fmt: skip
    said = {
        "method": "fedavgm",
        "num-server-rounds": 3,
        "seed": 5,
        "data.name": "npz",
        "data.root": str(tmp_path / "toy.npz"),
        "data.class-names": "dark,light",
        "data.channels": 1,
        "data.image-size": 16,
        "data.partition": "iid",
        "client.epochs": 1,
        "client.device": "cpu",
        "server.device": "cpu",
        "surrogate.width": 4,
        "surrogate.depth": 2,
    }
    return Unit(label="fedavgm", seed=5, clients=2, said=said, fingerprint="toy")


def shared(unit, **said):
    told = {**unit.said, "num-server-rounds": 1, **said}
    return Unit(**{**vars(unit), "label": told["method"], "said": told, "shares_training": True})


def kept(folder):
    return {file.name for file in (folder / "data" / "local").iterdir()}


def test_clients_train_once_for_all_methods_that_train_them_alike(unit, tmp_path, monkeypatch):
    trainings = []

    def counted(client, task, data):
        trainings.append((client.config.method, client.partition_id))
        return train_now(client, task, data)

    monkeypatch.setattr("comparing.shared.train_now", counted)
    alike = [shared(unit, method=name) for name in ("fedavg", "ccvr", "fedadam")]
    first, *others = [run_unit(u, tmp_path) for u in alike]
    assert trainings == [("fedavg", 0), ("fedavg", 1)]
    assert len(kept(tmp_path)) == 2
    for other in others:
        assert other["rounds"][0]["clients"]["wall"] >= first["rounds"][0]["clients"]["wall"] / 2
    for one, found in zip(alike, (first, *others), strict=True):
        alone = run_unit(Unit(**{**vars(one), "shares_training": False}), tmp_path / "alone")
        assert numbers(found) == numbers(alone)

    # Another rule, loss, rate, seed or round is another training.
    for differing in ({"method": "fedprox"}, {"client.loss": "balanced-softmax"},
                      {"client.lr": 0.01}, {"seed": 6}):  # fmt: skip
        trainings.clear()
        run_unit(shared(unit, **{"method": "fedavg", **differing}), tmp_path)
        assert len(trainings) == 2
    assert len(kept(tmp_path)) == 2 + 3 * 2  # the training of another rule is nobody else's


@pytest.mark.slow
def test_what_fails_ends_no_other_run(unit, tmp_path):
    broken = shared(unit, method="fedavg", **{"data.root": str(tmp_path / "none.npz")})
    sound = Unit(**{**vars(shared(unit, method="ccvr")), "seed": 6})
    told = []
    with pytest.raises(RuntimeError, match=f"1 runs failed: {broken.name}"):
        run_all([broken, sound], tmp_path, 1, lambda unit, record: told.append(unit.name))
    assert told == [sound.name]


def test_noise_for_privacy_is_neither_found_nor_left_to_be_found(unit, tmp_path):
    noisy = {"privacy.noise-multiplier": 5.0, "client.compile": False}
    private = shared(unit, method="fedavg", **noisy)
    assert shared_training([private]) == []
    run_unit(private, tmp_path)
    assert not (tmp_path / "data" / "local").exists()


def test_a_found_training_is_the_training(unit, tmp_path):
    config = shared(unit, method="fedavg").config
    tools = build_tools(config, spec_of(config.data))
    client, data = Client(config, tools.spec, 1), own_images(config.data, 1, 2, config.seed)
    task = task_of(first_state(config, tools, quiet), client, None)
    train = SharedTraining(tmp_path)
    done, found = train(client, task, data), train(client, task, data)
    alone = train_now(client, task, data).walk
    for walk in (done.walk, found.walk):
        assert (walk.steps, walk.loss, list(walk.params)) == (
            alone.steps,
            alone.loss,
            list(alone.params),
        )
        assert all(walk.params[k].equal(alone.params[k]) for k in alone.params)
    assert found.seconds == done.seconds
    assert key_of(client, task, data) != key_of(Client(config, tools.spec, 0), task, data)


def test_clients_are_trained_beforehand_where_runs_share_them(unit, tmp_path, monkeypatch):
    # Ours begins as the others do, since pixels know no class.
    names, pixels = ("fedprox", "fedavg", "feddgm"), {"prior.kind": "pixel"}
    units = [shared(unit, method=m, seed=s, **pixels) for s in (1, 2) for m in names]
    wanted = shared_training(units)
    assert [(u.label, u.said["seed"], i) for u, i in wanted] == [
        ("fedavg", 1, 0), ("fedavg", 1, 1), ("fedavg", 2, 0), ("fedavg", 2, 1)
    ]  # fmt: skip
    assert shared_training([unit]) == []
    for one, partition_id in wanted[:2]:
        train_client(one, partition_id, tmp_path)
    before = kept(tmp_path)
    monkeypatch.setattr("comparing.shared.train_now", None)  # nothing is left to train
    fewer = {"distill.iterations": 1, "distill.engine": "serial"}
    for name in names[1:]:
        run_unit(shared(unit, method=name, seed=1, **pixels, **fewer), tmp_path)
    assert kept(tmp_path) == before


def test_the_one_shot_grid_leaves_the_clients_alone():
    preset, entries = PRESETS["cifar10-oneshot"], roster(ENTRIES, wanted=None, conditional=False)
    images = Prepared({}, "toy", "toy", {})
    units = grids(preset, entries, images, division(0.1, None))
    assert not any(key.startswith("client.") for u in units for key in u.tried)
    by_label = [u.label for u in units]
    assert by_label.count("fedavg") == 1
    assert by_label.count("coboosting") == 2


def test_a_device_of_the_command_line_does_not_rename_a_run(unit, tmp_path):
    elsewhere = Unit(**{**vars(unit), "device": "cuda:7"})
    assert (elsewhere.name, elsewhere.resolved) == (unit.name, unit.resolved)
    with pytest.raises(ValueError, match="--device must be auto, cpu"):
        run_unit(elsewhere, tmp_path)
    made = run_unit(Unit(**{**vars(unit), "device": "auto"}), tmp_path)
    assert made["machine"]["device"] == made["rounds"][0]["server_on"]


def test_settings_of_the_command_line_are_read_as_a_run_config_reads_them():
    assert setting("client.epochs=2") == ("client.epochs", 2)
    assert setting("client.augment=crop_flip") == ("client.augment", "crop_flip")
    assert setting("distill.warm-start=false") == ("distill.warm-start", False)


def numbers(found):
    return [(r["round"], r["accuracy"], r["down"], r["up"]) for r in found["rounds"]]


def test_a_run_that_was_cut_off_goes_on_to_the_same_numbers(unit, tmp_path, monkeypatch):
    whole = run_unit(unit, tmp_path / "whole")
    assert [r["round"] for r in whole["rounds"]] == [1, 2, 3]
    assert whole["finished"]

    asked = []

    def cut_after_two(*args, **options):
        for done in rounds_of(*args, **options):
            asked.append(done.number)
            if done.number == 3 and len(asked) == 4:
                raise KeyboardInterrupt
            yield done

    monkeypatch.setattr("comparing.work.rounds_of", cut_after_two)
    with pytest.raises(KeyboardInterrupt):
        run_unit(unit, tmp_path / "cut")
    assert stored(tmp_path / "cut", unit) is None
    again = run_unit(unit, tmp_path / "cut")
    assert asked == [0, 1, 2, 3, 3]
    assert numbers(again) == numbers(whole)
    assert again["start"] == whole["start"]
    assert stored(tmp_path / "cut", unit) == again
    assert not list((tmp_path / "cut" / "partial").iterdir())


def test_bytes_are_those_of_the_messages(unit, tmp_path):
    # normalised 1 -> 4 -> 4 channels, 4 x 4 pixels, 2 classes: 40 + 8 + 148 + 8 + 130 numbers.
    found = run_unit(unit, tmp_path)["rounds"][0]
    parameters = 4 * (4 * 9 + 4 + 8 + 4 * 4 * 9 + 4 + 8 + 2 * 4 * 16 + 2)
    assert parameters * 2 < found["down"] < parameters * 2 + 2 * 2000
    # num-examples, partition-id, train-loss and seconds of each client, less its server-round.
    assert found["up"] > found["down"]


def test_a_diverged_run_is_a_result(unit, tmp_path):
    wild = Unit(**{**vars(unit), "said": {**unit.said, "client.lr": 1e30}})
    found = run_unit(wild, tmp_path)
    assert found["finished"]
    assert "finite" in found["diverged"]
    assert math.isnan(tables.accuracy_at(found, "surrogate", 3))
    assert tuning.score(found) == -math.inf


def test_a_stored_run_is_of_todays_settings(unit, tmp_path):
    then = {"config": dict(unit.resolved)}
    assert still_so(then, unit)
    del then["config"]["client.momentum"]  # a setting that came later
    assert still_so(then, unit)
    assert not still_so({"config": {**then["config"], "client.batch-size": 7}}, unit)
    # Another method's settings are not read, and a path is no number.
    assert not {"scaffold.server-lr", "distill.iterations", "data.root"} & set(unit.resolved)
    keep(tmp_path, unit, then)
    assert all_stored(tmp_path, [unit]) == {unit.name: then}


def test_names_of_units_differ_by_what_they_are_told(unit):
    moved = Unit(**{**vars(unit), "said": {**unit.said, "data.root": "/elsewhere"}})
    other = Unit(**{**vars(unit), "said": {**unit.said, "client.lr": 0.3}})
    assert moved.name == unit.name != other.name
    assert Unit(**{**vars(unit), "fingerprint": "another"}).name != unit.name


def test_a_row_that_diverges_whatever_is_tried_has_no_choice(unit):
    wild = record("fedavgm", 5, [0.9], diverged="infinite")
    assert tuning.chosen([unit], {unit.name: wild}) == {}
    assert "fedavgm" in tuning.chosen([unit], {unit.name: {**wild, "diverged": ""}})


def test_tuning_chooses_the_highest_mean_and_records_all(unit, tmp_path):
    tried = [{"client.lr": r} for r in (0.1, 0.2, 0.3)]
    units = [Unit(**{**vars(unit), "said": {**unit.said, **t}, "tried": t}) for t in tried]
    reached = [record("fedavgm", 5, a, diverged=d) for a, d in
               (([0.5, 0.5], ""), ([0.3, 0.8], ""), ([0.9], "infinite"))]  # fmt: skip
    records = {u.name: r for u, r in zip(units, reached, strict=True)}
    found = tuning.chosen(units, records)["fedavgm"]
    assert found["chosen"] == {"client.lr": 0.2}
    assert [row["score"] for row in found["grid"]] == [0.5, 0.55, None]
    about = {"preset": "toy", "division": {"data.alpha": 0.1}}
    tuning.save(tmp_path, {"fedavgm": found}, about)
    tuning.save(tmp_path, {"fedavg": found}, about)
    with pytest.raises(ValueError, match="chosen under"):
        tuning.save(tmp_path, {"fedavg": found}, {**about, "division": {"data.alpha": 0.5}})
    with pytest.raises(ValueError, match="chosen under"):
        tuning.save(tmp_path, {"fedavg": found}, {**about, "preset": "another"})
    assert tuning.where_chosen([tmp_path]) == ("toy", {"data.alpha": 0.1})
    assert tuning.where_chosen([tmp_path / "none"]) == ("", {})
    assert tuning.settings_of([tmp_path / "none", tmp_path]) == {
        "fedavgm": {"client.lr": 0.2},
        "fedavg": {"client.lr": 0.2},
    }
    assert json.loads((tmp_path / "tuned.json").read_text())["seed"] == 100
    assert tuning.chosen(units, dict(list(records.items())[:2])) == {}


def test_every_part_of_the_ablation_is_in_the_recipe_and_is_left_out_by_itself():
    recipe = RunConfig().flat()
    for said, without in PARTS.values():
        assert {key: recipe[key] for key in said} == said
        assert said.keys() == without.keys()
        assert all(said[key] != without[key] for key in said)
    labels = [row.label for row in ROWS]
    assert len(set(labels)) == len(labels)
    for row in ROWS:
        RunConfig.from_run_config(row.wanted)
        assert row.label == OURS or row.tuned_as == OURS
