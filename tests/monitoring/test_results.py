"""Laws of result.json, its table and its pictures."""

import json
import os

import numpy as np
import pytest
import torch

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.synthetic import SyntheticSet
from feddgm_flwr.files import write_atomically
from feddgm_flwr.monitoring import compare, plots
from feddgm_flwr.monitoring.results import Results, RoundResult, Scores

ISSUE_KEYS = {
    "method", "recipe", "dataset", "partition", "alpha", "clients", "seed", "rounds",
    "generator_only", "versions",
}  # fmt: skip
ROUND_KEYS = {"round", "accuracy", "loss", "seconds", "bytes_up", "bytes_down"}
FIGURES = {"partition_id": 2, "first_loss": 1.0, "last_loss": 0.5, "student_lr": 0.02}


def results(method="feddgm", rounds=2):
    made = Results.of(RunConfig(method=method))
    made.initial = Scores({"surrogate": 0.1}, {"surrogate": 2.3})
    for number in range(1, rounds + 1):
        made.rounds.append(
            RoundResult(
                round=number,
                accuracy={"surrogate": 0.3 * number},
                loss={"surrogate": 1.0 / number},
                seconds=1.5,
                bytes_up=10,
                bytes_down=20,
                replies={"accepted": 3},
                distilled=[dict(FIGURES)],
            )
        )
    return made


def synthetic(owners, labels, channels=1):
    n = len(labels)
    return SyntheticSet(
        images=torch.rand(n, channels, 8, 8),
        targets=torch.nn.functional.one_hot(torch.tensor(labels), 3).float(),
        weights=torch.ones(n),
        owner=torch.tensor(owners),
    )


def png(path):
    """Return a picture's width and height."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def test_results_survive_the_disk(tmp_path):
    results().save(tmp_path)
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved.keys() >= ISSUE_KEYS
    assert all(r.keys() >= ROUND_KEYS for r in saved["rounds"])
    assert saved["rounds"][0]["distilled"] == [FIGURES]
    assert Results.from_dict(saved).to_dict() == saved


def test_alpha_is_said_only_of_a_dirichlet_partition():
    config = RunConfig.from_run_config({"data.partition": "iid"})
    assert Results.of(config).header["alpha"] is None


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"], "half a file fills a full disk"


def test_who_writes_the_same_file_meanwhile_disturbs_nobody(tmp_path, monkeypatch):
    path, really, others = tmp_path / "file", os.fsync, [b"another's"]

    def slow(descriptor):
        if others:
            write_atomically(path, others.pop())
            assert path.read_bytes() == b"another's"
        really(descriptor)

    monkeypatch.setattr("os.fsync", slow)
    write_atomically(path, b"mine")
    assert path.read_bytes() == b"mine"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_table_has_a_row_a_round_and_a_column_a_run(tmp_path, capsys):
    files = []
    for method, rounds in (("feddgm", 2), ("fedavg", 3)):
        results(method, rounds).save(tmp_path / method)
        files.append(str(tmp_path / method / "result.json"))
    assert compare.main([*files, "--out", str(tmp_path / "accuracy.png")]) == 0
    head, *rows = capsys.readouterr().out.splitlines()[:4]
    assert head.split() == ["round", "feddgm,", "surrogate", "fedavg,", "surrogate"]
    assert [row.split() for row in rows] == [
        ["1", "30.0%", "30.0%"],
        ["2", "60.0%", "60.0%"],
        ["3", "-", "90.0%"],
    ]
    assert min(png(tmp_path / "accuracy.png")) > 200


def refused(capsys, *arguments):
    """Return the one sentence with which the comparison ends."""
    assert compare.main(list(map(str, arguments))) == 1
    [line] = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ("{}", "got none of the key 'method'"),
        ("hello", "got no JSON"),
        ("", "got no JSON"),
        (b"\xff\xfe", "got no JSON"),
        ("[" * 100_000, "got no JSON"),
        ("[1]", "got a JSON array"),
        ("null", "got a JSON null"),
    ],
)
def test_what_is_no_result_is_refused_in_a_sentence(tmp_path, capsys, content, got):
    file = tmp_path / "result.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    said = refused(capsys, file)
    assert said.startswith(f"{str(file)!r} must be the result.json of a run, {got}")
    assert "; name another" in said


def test_a_result_that_is_not_there_or_a_folder_is_refused_in_a_sentence(tmp_path, capsys):
    for path, got in ((tmp_path, "Is a directory"), (tmp_path / "no", "No such file or directory")):
        said = refused(capsys, path)
        assert said == f"{str(path)!r} must be a file that can be read, got: {got}; name another"


@pytest.mark.parametrize("key", compare.NEEDED)
def test_every_key_that_is_read_is_asked_for(tmp_path, capsys, key):
    file, made = tmp_path / "result.json", results().to_dict()
    file.write_text(json.dumps({k: v for k, v in made.items() if k != key}))
    assert f"got none of the key {key!r}" in refused(capsys, file)
    file.write_text(json.dumps(made | {key: True}))
    assert f"got boolean for the key {key!r}" in refused(capsys, file)


@pytest.mark.parametrize(
    "wrong",
    [
        *[{"rounds": [r]} for r in (1, {}, {"round": 1}, {"accuracy": {}}, {"round": "1"})],
        *[{"rounds": [{"round": 1, "accuracy": a}]} for a in ([], {"s": None}, {"s": "high"})],
        *[{"rounds": [{"round": 1, "accuracy": {"s": a}}]} for a in (10**400, float("nan"), -1)],
        *[{"generator_only": {"accuracy": a}} for a in (None, {"s": None}, [0.5])],
    ],
)
def test_rounds_and_controls_of_another_shape_are_refused(tmp_path, capsys, wrong):
    file = tmp_path / "result.json"
    file.write_text(json.dumps(results().to_dict() | wrong))
    assert "accuracy of each model from 0 to 1" in refused(capsys, file)


def test_a_result_of_the_first_version_is_told_and_its_remedy_helps(tmp_path, capsys):
    file, made = tmp_path / "result.json", results().to_dict()
    file.write_text(json.dumps({"strategy": made.pop("method"), **made}))
    said = refused(capsys, file)
    assert str(file) in said
    assert "version 0.1.0" in said
    assert said.endswith("rename that key to 'method'")
    file.write_text(file.read_text().replace('"strategy"', '"method"'))
    assert compare.main([str(file)]) == 0


def test_a_run_without_a_round_is_compared(tmp_path, capsys):
    results(rounds=0).save(tmp_path)
    out = tmp_path / "accuracy.png"
    assert compare.main([str(tmp_path / "result.json"), "--out", str(out)]) == 0
    assert min(png(out)) > 200


def test_a_picture_that_cannot_be_written_is_told_in_a_sentence(tmp_path, capsys):
    results().save(tmp_path)
    file, folder = tmp_path / "result.json", tmp_path / "folder"
    folder.mkdir()
    exists = f"[Errno 17] File exists: {str(file)!r}"
    for out, got in ((folder, "a folder"), (file / "x.png", exists)):
        said = refused(capsys, file, "--out", out)
        assert said == (
            f"--out {str(out)!r} must be a file that can be written, got: {got}; name another"
        )
    assert sorted(f.name for f in tmp_path.iterdir()) == ["folder", "result.json"]


def test_what_runs_do_not_share_stands_in_their_names_and_not_in_the_title():
    same = results().to_dict() | {"dataset": "mnist5k", "clients": 10}
    made = [
        same | {"partition": "dirichlet", "alpha": 0.1},
        same | {"partition": "iid", "alpha": None},
    ]
    assert plots.shared(made) == ["mnist5k", "10 clients"]
    assert list(plots.curves(made)) == [
        "feddgm, surrogate, dirichlet 0.1, seed 0",
        "feddgm, surrogate, iid, seed 0",
    ]
    controlled = [r | {"generator_only": {"accuracy": {"surrogate": 0.5}}} for r in made]
    said = compare.table(controlled).splitlines()[-2:]
    assert said[0].endswith("(seed 0, dirichlet 0.1): 50.0%")
    assert said[1].endswith("(seed 0, iid): 50.0%")


def test_runs_of_one_method_keep_their_own_lines():
    made = [results().to_dict() | {"seed": seed} for seed in (0, 1, 1)]
    assert list(plots.curves(made)) == [
        "feddgm, surrogate, seed 0",
        "feddgm, surrogate, seed 1",
        "feddgm, surrogate, seed 1 (2)",
    ]


def test_ownership_is_drawn_for_few_clients_and_for_many(tmp_path):
    for clients in (2, 40):
        counts = np.arange(3 * clients).reshape(3, clients)
        plots.draw_ownership(counts, ("a", "b", "c"), tmp_path / "owners.png")
        assert min(png(tmp_path / "owners.png")) > 100


@pytest.mark.parametrize("channels", [1, 3])
def test_distilled_images_are_drawn_and_kept(channels, tmp_path):
    images = synthetic([0, 0, 4, 4, 4], [0, 1, 1, 1, 2], channels)
    for number in (1, 2):
        plots.draw_round(tmp_path, number, images, ("a", "b", "c"))
    saved = np.load(tmp_path / "round_002.npz")
    assert saved["images"].shape == (5, 8, 8, channels)
    assert saved["label"].tolist() == [0, 1, 1, 1, 2]
    assert saved["owner"].tolist() == [0, 0, 4, 4, 4]
    for name in ("round_001.png", "round_002.png", "over_rounds.png"):
        assert min(png(tmp_path / name)) > 50


def test_a_round_without_images_draws_nothing(tmp_path):
    empty = synthetic([0], [0])
    nothing = SyntheticSet(empty.images[:0], empty.targets[:0], empty.weights[:0], empty.owner[:0])
    plots.draw_grid(nothing, ("a", "b", "c"), tmp_path / "grid.png", title="none")
    assert not (tmp_path / "grid.png").exists()
