"""Laws of the run folder: which one it is, and what lies in it."""

import logging
import re

import pytest
import safetensors.torch
import torch
import toy

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.state import RoundReport, ServerState
from feddgm_flwr.core.synthetic import SyntheticSet
from feddgm_flwr.data.datasets import spec_of
from feddgm_flwr.events import ImagesDrawn, SpriteWritten
from feddgm_flwr.federation import checkpoint, folder
from feddgm_flwr.federation.server import restored
from feddgm_flwr.monitoring.sprites import Sprites


def configured(**said):
    return RunConfig.from_run_config({k.replace("_", "-"): v for k, v in said.items()})


def test_a_run_without_a_folder_gets_a_new_one_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    got = folder.run_folder(configured(method="fedavg", seed=7))
    assert got.parent == tmp_path / "feddgm-runs"
    assert re.fullmatch(r"\d{8}-\d{6}-fedavg-7", got.name)
    assert list(got.iterdir()) == []


def test_a_named_folder_is_taken_and_must_be_absolute(tmp_path):
    assert folder.run_folder(configured(out_dir=str(tmp_path))) == tmp_path
    with pytest.raises(ValueError, match="must be an absolute path, got 'runs'"):
        folder.run_folder(configured(out_dir="runs"))


def test_another_run_is_never_overwritten(tmp_path):
    config = configured(out_dir=str(tmp_path))
    assert restored(config, folder.run_folder(config)) is None
    (tmp_path / checkpoint.FILE).touch()
    with pytest.raises(ValueError, match=r"must be a new folder, .* holds a run; .* resume = true"):
        restored(config, folder.run_folder(config))


def test_resuming_needs_a_folder_with_a_run_and_makes_none(tmp_path):
    with pytest.raises(ValueError, match="resume = true needs out-dir"):
        folder.run_folder(configured(resume=True))
    misspelt = configured(resume=True, out_dir=str(tmp_path / "no" / "such"))
    with pytest.raises(ValueError, match="resume = true needs a checkpoint in out-dir, got none"):
        folder.run_folder(misspelt)
    assert list(tmp_path.iterdir()) == []


def test_models_are_saved_by_their_names(tmp_path):
    turned = torch.randn(3, 2).t()
    state = ServerState(1, {"w": turned}, {"vit": {"n": torch.tensor(4)}})
    folder.save_models(state, tmp_path)
    files = {f.name for f in (tmp_path / "models").iterdir()}
    assert files == {"surrogate.safetensors", "vit.safetensors"}
    saved = safetensors.torch.load_file(tmp_path / "models" / "surrogate.safetensors")
    assert torch.equal(saved["w"], turned)


def report(count):
    fresh = SyntheticSet(
        torch.rand(count, 1, 8, 8),
        torch.eye(3)[[i % 3 for i in range(count)]],
        torch.ones(count),
        torch.zeros(count, dtype=torch.int64),
    )
    return RoundReport((), fresh)


def sprites(path, told):
    return Sprites(path, told.append, images=9, room_mb=1.0)


def test_a_rounds_images_are_drawn_and_told(tmp_path):
    told = []
    show = folder.draw_round(tmp_path, toy.SPEC, told.append, sprites(tmp_path, told))
    show(4, report(3))
    assert isinstance(told[0], SpriteWritten)
    assert told[1:] == [ImagesDrawn(round=4, path="images/round_004.png", num_images=3)]
    assert (tmp_path / told[1].path).stat().st_size > 500


def test_a_round_without_images_draws_and_tells_nothing(tmp_path):
    told = []
    folder.draw_round(tmp_path, toy.SPEC, told.append, sprites(tmp_path, told))(4, report(0))
    assert told == []
    assert list(tmp_path.iterdir()) == []


def test_who_owns_what_is_drawn_only_where_the_data_are_divided(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="feddgm_flwr")
    config = RunConfig.from_run_config({"data.name": "digits"})
    folder.draw_owners(config, spec_of(config.data), 0, tmp_path)
    assert "the clients have data of their own" in caplog.text
    assert list(tmp_path.iterdir()) == []
    folder.draw_owners(config, spec_of(config.data), 3, tmp_path)
    assert (tmp_path / "owners.png").stat().st_size > 500


@pytest.mark.parametrize("said", [{"out-dir": "/proc/nobody/run"}, {}])
def test_a_folder_that_cannot_be_written_is_told_before_anything_is_computed(said, monkeypatch):
    monkeypatch.setenv("HOME", "/proc/nobody")
    config = RunConfig.from_run_config(said)
    with pytest.raises(ValueError, match="a folder that can be written, got '/proc"):
        folder.run_folder(config)
