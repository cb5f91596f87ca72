"""deploy/merge_config.py: the last one said wins, and a wrong key is told the right one."""

import importlib.util
import math
import tomllib
from pathlib import Path

import pytest
import tomli_w

SCRIPT = Path(__file__).parents[1] / "deploy" / "merge_config.py"


@pytest.fixture(scope="module")
def merge():
    spec = importlib.util.spec_from_file_location("merge_config", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "said.toml"
    path.write_text('seed = 1\n[client]\nepochs = 2\nlr = 0.5\n[data]\nroot = "/a b"\n')
    return path


def test_the_last_one_said_wins_from_files_and_strings(merge, tmp_path, file, capsys):
    out = tmp_path / "run.toml"
    strings = ("client.epochs=3 resume=true", 'client.epochs=4 out-dir="/r"')
    assert merge([str(out), *(word for s in (file, *strings) for word in ("-c", str(s)))]) == 0
    assert tomllib.loads(out.read_text()) == {
        "seed": 1,
        "client": {"epochs": 4, "lr": 0.5},
        "data": {"root": "/a b"},
        "resume": True,
        "out-dir": "/r",
    }
    assert capsys.readouterr().err == ""


def test_a_file_said_after_a_string_wins_over_it(merge, tmp_path, file):
    out = tmp_path / "run.toml"
    assert merge([str(out), "--run-config", "seed=9 client.epochs=9", "-c", str(file)]) == 0
    assert tomllib.loads(out.read_text())["seed"] == 1


@pytest.mark.parametrize("value", ["/🌸", "a\x7fb", 'say "a\\b"'])
def test_a_text_is_toml_whatever_stands_in_it(merge, tmp_path, value):
    out, said = tmp_path / "run.toml", tmp_path / "said.toml"
    said.write_text(tomli_w.dumps({"out-dir": value}), encoding="utf-8")
    assert merge([str(out), "-c", str(said)]) == 0
    assert tomllib.loads(out.read_text("utf-8")) == {"out-dir": value}


def test_a_number_that_is_none_reaches_the_run_that_refuses_it(merge, tmp_path):
    out = tmp_path / "run.toml"
    assert merge([str(out), "-c", "client.lr=nan"]) == 0
    assert math.isnan(tomllib.loads(out.read_text())["client"]["lr"])


def test_nothing_said_is_an_empty_file(merge, tmp_path):
    out = tmp_path / "run.toml"
    assert merge([str(out)]) == 0
    assert out.read_text() == ""


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ('strategy="fedavg"', "strategy is now called method"),
        ('generator.kind="pixel"', "generator.kind is now called prior.kind"),
        ("client.epoch=1", "client.epoch may mean client.epochs"),
    ],
)
def test_a_renamed_or_misspelt_key_is_told_the_right_one(merge, tmp_path, capsys, said, told):
    out = tmp_path / "run.toml"
    assert merge([str(out), "-c", "seed=1", "-c", said]) == 1
    assert told in capsys.readouterr().err
    assert not out.exists()
