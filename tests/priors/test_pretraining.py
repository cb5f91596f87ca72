import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from feddgm_flwr.core.images import ImageSpec
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.priors import build_prior
from feddgm_flwr.priors.pretraining import cli
from feddgm_flwr.priors.pretraining.fonts import CLASSES, rasterise, thin
from feddgm_flwr.priors.pretraining.ink import Hand, draw
from feddgm_flwr.priors.pretraining.sources import FolderSource, read_folder
from feddgm_flwr.priors.pretraining.train import CHECKPOINT, Pretraining, fit
from feddgm_flwr.priors.settings import PriorConfig


def noise_source(classes=("a", "b")):
    pixels = torch.randint(0, 256, (6, 1, 8, 8), generator=derive(0, "test")).to(torch.uint8)
    return FolderSource(pixels, torch.tensor([0, 1] * 3), classes)


def tiny_run(**changes):
    return Pretraining(**{"steps": 6, "batch": 4, "width": 4, "size": 8, **changes})


def nothing(step, loss):
    pass


def write_images(folder: Path, mode: str) -> None:
    shape = (12, 16) if mode == "L" else (12, 16, 3)
    for name, value in (("light", 200), ("dark", 30)):
        (folder / name).mkdir(parents=True)
        for i in range(3):
            pixels = np.full(shape, value + i, np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


def distance_to(x: int) -> torch.Tensor:
    """A master whose skeleton is an upright line."""
    return (torch.arange(64.0) - x).abs().expand(64, 64)


def test_a_font_that_lacks_a_character_gives_nothing():
    assert rasterise("cmr10", "Ω") is None
    assert rasterise("DejaVuSans", "Ω").any()


def test_a_glyph_fills_its_body_in_the_middle():
    ink = rasterise("DejaVuSans", "H")
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    assert 42 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 46
    assert abs(rows.mean() - 31.5) <= 1
    assert abs(columns.mean() - 31.5) <= 1


def test_thinning_leaves_a_connected_line_within_the_ink():
    ink = np.zeros((1, 20, 20), dtype=bool)
    ink[0, 3:17, 8:13] = True
    line = thin(ink)
    assert (line <= ink).all()
    assert 8 <= line.sum() <= 14
    assert (line.sum(2) <= 1).all()


def test_a_wider_pen_draws_more_ink_and_the_ink_is_placed_like_scanned_digits():
    field = distance_to(32)[None].repeat(8, 1, 1)
    still = {
        "rotation": 0.0, "shear": 0.0, "stretch": 0.0, "warp": 0.0,
        "fill": (1.0, 1.0), "shift": 0.0, "pen_share": 1.0,
    }  # fmt: skip
    field = torch.maximum(field, (torch.arange(64.0)[:, None] - 32).abs() - 20)
    thin_pen, thick_pen = (
        draw(field, field, 28, Hand(**still, pen=(w, w)), rng=derive(0, "test"))
        for w in (0.05, 0.15)
    )
    assert thick_pen.sum() > 2 * thin_pen.sum()
    rows = torch.nonzero(thin_pen[0, 0].amax(1) > 0.5)[:, 0]
    assert abs(len(rows) - 20) <= 2
    assert abs(rows.float().mean() - 13.5) <= 0.5
    assert thin_pen.min() >= 0
    assert thin_pen.max() <= 1


def test_drawing_is_seeded():
    field = distance_to(32)[None]
    first, again = (draw(field, field, 28, Hand(), rng=derive(5, "x")) for _ in range(2))
    assert torch.equal(first, again)


def test_classes_are_digits_latin_and_greek_letters_without_repeats():
    assert len(CLASSES) == len(set(CLASSES)) == 10 + 26 + 26 + 48
    assert {"7", "Q", "q", "Ω", "ω"} <= set(CLASSES)


def test_an_interrupted_run_ends_where_the_whole_one_ends(tmp_path):
    source = noise_source()
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = fit(tiny_run(), source, tmp_path / "whole", on_step=nothing)

    def interrupt(step, loss):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("feddgm_flwr.priors.pretraining.train.SAVE_EVERY", 2)
        with pytest.raises(KeyboardInterrupt):
            fit(tiny_run(), source, tmp_path / "parts", on_step=interrupt)
        steps = []
        parts = fit(tiny_run(), source, tmp_path / "parts", on_step=lambda s, _: steps.append(s))
    assert steps == [5, 6]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name])


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    fit(tiny_run(), noise_source(), tmp_path, on_step=nothing)
    with pytest.raises(ValueError, match="is of another run"):
        fit(tiny_run(seed=1), noise_source(), tmp_path, on_step=nothing)
    with pytest.raises(ValueError, match="is of another run"):
        fit(tiny_run(), noise_source(("a", "c")), tmp_path, on_step=nothing)


def test_a_checkpoint_of_other_pictures_is_refused(tmp_path):
    pixels, targets = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 0, 1, 1])
    source = FolderSource(pixels, targets, ("a", "b"))
    fit(tiny_run(), source, tmp_path, on_step=nothing)
    fit(tiny_run(), FolderSource(pixels.clone(), targets, ("a", "b")), tmp_path, on_step=nothing)
    with pytest.raises(ValueError, match="is of another run"):
        fit(tiny_run(), FolderSource(pixels + 1, targets, ("a", "b")), tmp_path, on_step=nothing)


def test_pretraining_lowers_the_loss(tmp_path):
    losses = []
    pixels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    pixels[2:, :, :, 4:] = 255
    source = FolderSource(pixels, torch.tensor([0, 0, 1, 1]), ("left", "right"))
    fit(
        tiny_run(steps=80),
        source,
        tmp_path,
        on_step=lambda _, loss: losses.append(loss),
    )
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_the_command_makes_a_prior_of_a_folder_of_images(tmp_path, mode, channels):
    write_images(tmp_path / "images", mode)
    out = tmp_path / "prior"
    cli.main([
        "--images", str(tmp_path / "images"), "--out", str(out), "--size", "8",
        "--channels", str(channels), "--steps", "4", "--batch", "4", "--width", "4",
    ])  # fmt: skip
    assert not (out / CHECKPOINT).exists()
    with Image.open(out / "samples.png") as image:
        assert image.size == (20 * 8, 2 * 8)
    spec = ImageSpec(channels, 8, ("light", "dark"), (0.5,) * channels, (0.2,) * channels)
    prior = build_prior(PriorConfig(path=str(out)), spec)
    assert prior.conditional
    latents = prior.sample(torch.tensor([0, 1]), rng=derive(0, "test"))
    assert prior.decode(latents).shape == (2, channels, 8, 8)
    whole = build_prior(PriorConfig(kind="autoencoder", path=str(out)), spec)
    torch.testing.assert_close(whole.decode(latents), prior.decode(latents))


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="at least one image"):
        read_folder(tmp_path, channels=1, size=8)


def refused(capsys, *arguments):
    """Return the one line with which the command ends."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(map(str, arguments)))
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("feddgm-pretrain: error: ")
    return line.removeprefix("feddgm-pretrain: error: ")


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        *[(name, value, "1 or more") for value in (0, -3)
          for name in ("steps", "batch", "width", "latent-channels", "threads")],
        ("seed", -1, "0 or more"),
        *[("size", value, "a multiple of 4 from 8 to 1024") for value in (30, 0, -8, 1028)],
    ],
)  # fmt: skip
def test_an_option_out_of_range_is_refused_in_a_line(tmp_path, option, value, expected, capsys):
    said = refused(capsys, "--out", tmp_path / "out", f"--{option}={value}")
    assert said == f"--{option} must be {expected}, got {value}; correct it"
    assert not (tmp_path / "out").exists()


def test_colour_glyphs_are_refused_in_a_line(tmp_path, capsys):
    said = refused(capsys, "--out", tmp_path / "out", "--channels", 3)
    assert said.startswith("--channels must be 1 for glyphs, got 3; ")


@pytest.mark.parametrize("option", ["--steps", "--width"])
def test_what_is_no_number_is_refused_by_name(option, capsys):
    with pytest.raises(SystemExit):
        cli.parse(["--out", "x", option, "nan"])
    assert f"argument {option}: invalid int value: 'nan'" in capsys.readouterr().err


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("name", ["lr", "noise"])
def test_a_rate_out_of_range_is_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be .*, got {value}; correct it$"):
        tiny_run(**{name: value})


def test_a_learning_rate_of_nothing_is_refused_and_no_noise_is_not():
    with pytest.raises(ValueError, match=r"^lr must be greater than 0, got 0\.0"):
        tiny_run(lr=0.0)
    assert tiny_run(noise=0.0).noise == 0


@pytest.mark.parametrize("kind", ["gone", "file", "no picture"])
def test_wrong_images_are_refused_in_a_line(tmp_path, kind, capsys):
    images = tmp_path / "images"
    if kind == "file":
        images.write_text("hello")
    elif kind == "no picture":
        write_images(images, "L")
        (images / "dark" / "notes.txt").write_text("hello")
    said = refused(capsys, "--out", tmp_path / "out", "--images", images)
    assert str(images) in said
    assert "; " in said


def test_a_folder_that_cannot_be_made_is_refused_in_a_line(tmp_path, capsys):
    (tmp_path / "out").write_text("in the way")
    said = refused(capsys, "--out", tmp_path / "out" / "prior")
    assert said == (
        f"--out {tmp_path / 'out' / 'prior'} must be a folder that can be made, got: Not a "
        "directory; name another"
    )


@pytest.mark.parametrize("damaged", [False, True])
def test_a_checkpoint_that_does_not_fit_is_refused_in_a_line(tmp_path, damaged, capsys):
    write_images(tmp_path / "images", "L")
    fit(tiny_run(), noise_source(), tmp_path, on_step=nothing)
    if damaged:
        (tmp_path / CHECKPOINT).write_bytes(b"hello")
    said = refused(
        capsys, "--out", tmp_path, "--images", tmp_path / "images", "--size", 8, "--steps", 6
    )
    assert str(tmp_path / CHECKPOINT) in said
    assert ("is damaged" if damaged else "is of another run") in said
