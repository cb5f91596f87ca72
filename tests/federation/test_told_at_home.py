"""What a device tells of a failure, and what the server makes of what it is told."""

import logging

import numpy as np
import pytest
import torch
from flwr.app import Context, Error, Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.images import ImageSpec
from feddgm_flwr.core.state import RoundReport
from feddgm_flwr.core.synthetic import SyntheticSet
from feddgm_flwr.federation import folder as run_folder
from feddgm_flwr.federation.device import Device, ToldAtHomeError, told_at_home
from feddgm_flwr.federation.messages import REASON_LENGTH, Rejection, harmless, parse_identity
from feddgm_flwr.monitoring.results import Results
from feddgm_flwr.monitoring.sprites import Sprites


def device(run_config=(), **node_config):
    context = Context(
        run_id=1, node_id=1, state=RecordDict(), run_config=dict(run_config),
        node_config={"partition-id": 0, **{k.replace("_", "-"): v for k, v in node_config.items()}},
    )  # fmt: skip
    return Device.of(context)


def test_no_name_of_a_devices_file_goes_over_the_wire(tmp_path, caplog):
    home = tmp_path / "Jane Doe"
    (home / "train" / "7").mkdir(parents=True)
    (home / "train" / "7" / "Jane Doe 1970.png").write_bytes(b"broken")
    with pytest.raises(ToldAtHomeError) as caught:
        device(data_dir=str(home)).images("train")
    assert str(caught.value) == "this client could not read its train data; see its own log"
    assert "Jane Doe 1970.png' must be a picture" in caplog.text


@pytest.mark.parametrize("what", ["gone", "text", "float", "class", "cut"])
def test_whatever_fails_the_sentence_is_the_same(tmp_path, what):
    home = tmp_path / "secret"
    match what:
        case "text":
            home.write_text("hello")
        case "float":
            home = home.with_suffix(".npz")
            np.savez(home, train_images=np.zeros((2, 8, 8)), train_labels=[0, 1])
        case "class":
            (home / "train" / "secret").mkdir(parents=True)
        case "cut":
            (home / "train" / "7").mkdir(parents=True)
            noise = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
            Image.fromarray(noise).save(home / "train" / "7" / "secret.png")
            file = home / "train" / "7" / "secret.png"
            file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(ToldAtHomeError) as caught:
        device(data_dir=str(home)).images("train")
    assert str(caught.value) == "this client could not read its train data; see its own log"


def test_a_division_that_is_impossible_is_told_to_all_for_it_tells_of_numbers_only():
    asked = device({"data.min-examples": 10**6}, num_partitions=2)
    with pytest.raises(ValueError, match="no Dirichlet partition of 4000 images"):
        asked.images("train")


def test_a_failure_of_training_tells_its_kind_alone(caplog):
    caplog.set_level(logging.ERROR)
    with pytest.raises(ToldAtHomeError) as caught, told_at_home("train", name_it=True):
        raise MemoryError("/home/jane")
    assert str(caught.value) == "this client could not train (MemoryError); see its own log"
    assert "/home/jane" in caplog.text


@given(st.text())
def test_a_reason_is_short_and_harmless(text):
    said = harmless(text)
    assert len(said) <= REASON_LENGTH
    assert said.isprintable()
    if text.isprintable() and len(text) <= REASON_LENGTH:
        assert said == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\nround 9 done", "a\\nround 9 done"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("a\u202eb", "a\\u202eb"),
        ("a\r\x00\x7f", "a\\r\\x00\\x7f"),
        ("\ud800", "\\ud800"),
        ("Käse 猫", "Käse 猫"),
    ],
)
def test_what_a_terminal_would_obey_is_spelt_out(text, said):
    assert harmless(text) == said


def test_a_book_is_cut():
    assert Rejection("x" * 10**6).reason == "x" * 297 + "..."
    question = Message(RecordDict(), dst_node_id=1, message_type="query")
    answer = parse_identity(Message(Error(code=2, reason="\n" * 10**6), reply_to=question))
    assert len(answer.reason) == REASON_LENGTH
    assert answer.reason.startswith("the client failed: \\n\\n")


SPEC = ImageSpec(1, 28, tuple("0123456789"), (0.5,), (0.25,))


def broken(*args, **kwargs):
    raise RuntimeError("no font")


@pytest.mark.parametrize("name", ["draw_ownership", "draw_accuracy", "draw_round"])
def test_no_picture_ends_a_run(tmp_path, monkeypatch, caplog, name):
    monkeypatch.setattr(f"feddgm_flwr.monitoring.plots.{name}", broken)
    config, told = RunConfig(), []

    some = torch.zeros(1, 1, 28, 28), torch.eye(10)[:1], torch.ones(1), torch.zeros(1).long()
    report = RoundReport((), SyntheticSet(*some))
    match name:
        case "draw_ownership":
            run_folder.draw_owners(config, SPEC, 3, tmp_path)
        case "draw_accuracy":
            run_folder.draw_results(Results.of(config), tmp_path)
        case "draw_round":
            sprites = Sprites(tmp_path, told.append, images=0, room_mb=1.0)
            run_folder.draw_round(tmp_path, SPEC, told.append, sprites)(1, report)
    assert told == []
    # Each once: pytest listens at more than one logger.
    [record] = [r for r in dict.fromkeys(caplog.records) if r.levelno == logging.WARNING]
    assert "no font" in record.message


def test_a_division_that_is_impossible_ends_a_run_before_its_first_round(tmp_path):
    config = RunConfig.from_run_config({"data.min-examples": 10**6})
    with pytest.raises(ValueError, match="no Dirichlet partition"):
        run_folder.draw_owners(config, SPEC, 3, tmp_path)
