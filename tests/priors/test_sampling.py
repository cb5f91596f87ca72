"""Laws of a bank that a diffusers pipeline draws before round 1."""

import gc
import importlib.util
import json
import logging
import weakref

import diffusers
import pytest
import torch
from small_models import save_tiny
from small_pipelines import SIDE, save_ddpm, save_dit, save_sd

from feddgm_flwr.core import telling
from feddgm_flwr.core.images import ImageSpec
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.priors import build_prior, sampling
from feddgm_flwr.priors.autoencoder import load_autoencoder
from feddgm_flwr.priors.bank import FILE, LatentBank
from feddgm_flwr.priors.encoding import Encoder
from feddgm_flwr.priors.sampling import fitted, label_ids, useful
from feddgm_flwr.priors.settings import PriorConfig

LABELS = {3: "tench, Tinca tinca", 7: "golf ball"}
CLASSES = ("golf ball", "Tench")

needs_text = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="pip install '.[pipelines]'"
)


def spec(classes=CLASSES, size=8, channels=3):
    return ImageSpec(channels, size, classes, (0.5,) * channels, (0.2,) * channels)


@pytest.fixture(autouse=True)
def quiet():
    diffusers.logging.set_verbosity_error()


def config(tmp_path, **options):
    said = {
        "kind": "pipeline", "path": str(tmp_path / "pipe"), "steps": 2, "per_class": 3,
        "sample_batch": 2, "bank_folder": str(tmp_path / "banks"),
    }  # fmt: skip
    return PriorConfig(**said | options)


def banks(tmp_path):
    return sorted((tmp_path / "banks").iterdir())


def the_bank(tmp_path):
    (folder,) = banks(tmp_path)
    return LatentBank.load(folder)


def refused(tmp_path, of=None, **options):
    with pytest.raises(ValueError, match=r"prior\.") as caught:
        build_prior(config(tmp_path, **options), spec() if of is None else of)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_class_conditional_pipeline_draws_each_class_by_its_label(tmp_path):
    save_dit(tmp_path / "pipe", LABELS)
    prior = build_prior(config(tmp_path), spec())
    assert prior.conditional
    images = prior.decode(prior.sample(torch.tensor([0, 1, 1]), rng=derive(0, "test")))
    assert images.shape == (3, 3, 8, 8)
    bank = the_bank(tmp_path)
    assert bank.classes == CLASSES
    assert torch.bincount(bank.labels).tolist() == [3, 3]
    assert (bank.size, bank.image_scale) == (8, 1)


def test_the_bank_holds_encodings_of_what_diffusers_draws(tmp_path):
    pipeline = save_dit(tmp_path / "pipe", LABELS)
    build_prior(config(tmp_path, guidance=2.0), spec())
    pipeline.set_progress_bar_config(disable=True)
    encode = Encoder(load_autoencoder(str(tmp_path / "pipe" / "vae")))
    bank = the_bank(tmp_path)
    for label, number in enumerate((7, 3)):
        drawn = pipeline(
            [number] * 3,
            generator=[derive(0, "pipeline-picture", label, i) for i in range(3)],
            num_inference_steps=2,
            guidance_scale=2.0,
            output_type="pt",
        ).images
        expected = encode(fitted(drawn, 8, 3))
        found = bank.latents[bank.labels == label]
        assert (expected - found).abs().max() <= 0.51 * bank.scale + 1e-4
        assert expected.std() > 4 * bank.scale  # else they would fit anything


def test_it_is_run_once_and_forgotten(tmp_path, monkeypatch):
    save_dit(tmp_path / "pipe", LABELS)
    held = []
    load = sampling.load_pipeline

    def watched(*arguments):
        pipeline = load(*arguments)
        held.append(weakref.ref(pipeline.transformer))
        return pipeline

    monkeypatch.setattr(sampling, "load_pipeline", watched)
    first = build_prior(config(tmp_path), spec())
    gc.collect()
    assert [ref() for ref in held] == [None]
    again = build_prior(config(tmp_path), spec())
    assert len(held) == 1
    assert first.fingerprint == again.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 1}, {"guidance": 1.0}, {"sample_seed": 1}, {"per_class": 2},
        {"words": "3,7"}, {"image_scale": 2}, {"revision": "other"},
    ],
)  # fmt: skip
def test_whatever_changes_the_pictures_has_a_bank_of_its_own(tmp_path, change):
    save_dit(tmp_path / "pipe", LABELS)
    build_prior(config(tmp_path), spec())
    build_prior(config(tmp_path, **change), spec())
    assert len(banks(tmp_path)) == 2
    about = [json.loads((folder / "making.json").read_text()) for folder in banks(tmp_path)]
    assert about[0]["pipeline"] == str(tmp_path / "pipe")
    assert about[0] != about[1]


def test_how_many_are_drawn_at_a_time_changes_no_picture(tmp_path):
    save_dit(tmp_path / "pipe", LABELS)
    found = []
    for size in (1, 3):
        options = {"sample_batch": size, "bank_folder": str(tmp_path / f"banks{size}")}
        build_prior(config(tmp_path, **options), spec())
        (folder,) = (tmp_path / f"banks{size}").iterdir()
        found.append(LatentBank.load(folder))
    torch.testing.assert_close(found[0].latents, found[1].latents, atol=found[0].scale, rtol=0)


def test_what_was_cut_off_goes_on_and_ends_the_same(tmp_path, monkeypatch):
    save_dit(tmp_path / "pipe", LABELS)
    build_prior(config(tmp_path, bank_folder=str(tmp_path / "whole")), spec())
    drawn = []
    real = diffusers.DiTPipeline.__call__

    def cut(self, class_labels, **how):
        drawn.append(len(class_labels))
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return real(self, class_labels, **how)

    cut.__signature__ = __import__("inspect").signature(real)
    monkeypatch.setattr(diffusers.DiTPipeline, "__call__", cut)
    with pytest.raises(KeyboardInterrupt):
        build_prior(config(tmp_path), spec())
    assert not (banks(tmp_path)[0] / FILE).exists()
    build_prior(config(tmp_path), spec())
    assert drawn == [2, 1, 2, 2, 1]  # two batches a class; the third was cut and drawn again
    (whole,) = (tmp_path / "whole").iterdir()
    assert torch.equal(LatentBank.load(whole).codes, the_bank(tmp_path).codes)


def test_progress_is_told_with_the_time_left(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(telling, "PAUSE_S", 0.0)
    caplog.set_level(logging.INFO, logger="feddgm_flwr.priors.sampling")
    save_dit(tmp_path / "pipe", LABELS)
    build_prior(config(tmp_path), spec())
    said = [r.getMessage() for r in caplog.records]
    assert said[0].startswith("DiTPipeline draws 3 pictures a class on cpu, once; ")
    assert [line.split(",")[0] for line in said[1:]] == [
        f"the pipeline drew {n} of 6 pictures" for n in (2, 3, 5, 6)
    ]
    assert said[-1].endswith("0 s left")


def test_another_decoder_may_hold_the_bank(tmp_path):
    save_dit(tmp_path / "pipe", LABELS)
    save_tiny(tmp_path / "tiny")
    prior = build_prior(config(tmp_path, decoder=str(tmp_path / "tiny"), image_scale=2), spec())
    assert prior.sample(torch.tensor([0]), rng=derive(0, "test")).shape == (1, 4, 4, 4)
    cut = config(tmp_path, decoder=str(tmp_path / "tiny"), image_scale=2, feature_block=2)
    features = build_prior(cut, spec()).sample(torch.tensor([0]), rng=derive(0, "test"))
    assert features.shape[1] == 8
    assert len(banks(tmp_path)) == 1


def test_what_it_cannot_do_is_refused_with_the_remedy(tmp_path):
    save_dit(tmp_path / "pipe", LABELS)
    assert "near: ['golf ball']" in refused(tmp_path, spec(("golf bal", "tench")))
    assert "must name all 2 classes" in refused(tmp_path, words="3")
    assert "must take ['negative_prompt']" in refused(tmp_path, negative_prompt="blurred")
    assert "prior.bank-folder must be an absolute path" in refused(tmp_path, bank_folder="here")
    save_ddpm(tmp_path / "ddpm")
    said = refused(tmp_path, path=str(tmp_path / "ddpm"))
    assert "got DDPMPipeline, which knows no classes" in said
    save_tiny(tmp_path / "tiny")
    said = refused(tmp_path, path=str(tmp_path / "tiny"), decoder=str(tmp_path / "tiny"))
    assert "which does not load" in said


def test_labels_are_found_by_name_or_number():
    labels = {"tench": 0, "Tinca tinca": 0, "golf ball": 574}
    assert label_ids(labels, ("Golf Ball", "tench", "12")) == [574, 0, 12]


def test_pictures_that_show_nothing_are_left_out_and_counted(caplog):
    pictures = torch.rand(4, 3, 8, 8, generator=derive(0, "test"))
    pictures[1], pictures[2, 0, 0, 0] = 0.0, torch.nan
    assert useful(pictures, "dog").tolist() == [True, False, False, True]
    assert "2 pictures of 'dog' show nothing" in caplog.text


def test_pictures_are_cut_to_their_middle_square_and_resized():
    wide = torch.zeros(1, 3, 4, 8)
    wide[..., 2:6] = 1
    assert torch.equal(fitted(wide, 2, 3), torch.ones(1, 3, 2, 2))
    assert torch.equal(fitted(wide.transpose(2, 3), 2, 1), torch.ones(1, 1, 2, 2))


@needs_text
def test_a_text_to_image_pipeline_is_asked_by_prompt(tmp_path):
    save_sd(tmp_path / "pipe")
    asked = {"prompt": "a sketch of a {class}", "negative_prompt": "blur", "guidance": 3.0}
    prior = build_prior(config(tmp_path, words="ball,fish", **asked), spec())
    assert prior.conditional
    bank = the_bank(tmp_path)
    assert torch.bincount(bank.labels).tolist() == [3, 3]
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "pipe")
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        ["a sketch of a fish"] * 3,
        negative_prompt=["blur"] * 3,
        guidance_scale=3.0,
        num_inference_steps=2,
        generator=[derive(0, "pipeline-picture", 1, i) for i in range(3)],
        output_type="pt",
    ).images
    assert drawn.shape[-1] == SIDE
    expected = Encoder(load_autoencoder(str(tmp_path / "pipe" / "vae")))(fitted(drawn, 8, 3))
    assert (expected - bank.latents[bank.labels == 1]).abs().max() <= 0.51 * bank.scale + 1e-4


@pytest.mark.skipif(
    importlib.util.find_spec("transformers") is not None, reason="transformers is installed"
)
def test_without_what_text_needs_the_remedy_is_told(tmp_path):
    folder = tmp_path / "pipe"
    save_dit(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = "StableDiffusionPipeline"
    index |= {"text_encoder": ["transformers", "CLIPTextModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    assert "pip install '.[pipelines]'" in refused(tmp_path)
