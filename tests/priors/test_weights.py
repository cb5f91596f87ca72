"""Weights that are not what they say end in one sentence; others decode to the right value."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import WEIGHTS, save_kl, save_pooled, save_tiny, save_vq

import feddgm_priors
from feddgm_flwr.core.images import ImageSpec
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.priors import build_prior
from feddgm_flwr.priors.bank import FILE, LatentBank
from feddgm_flwr.priors.settings import PriorConfig

SAVERS = {"kl": save_kl, "tiny": save_tiny, "vq": save_vq, "pooled": save_pooled}
INDEX = f"{WEIGHTS}.index.json"
FP16 = "diffusion_pytorch_model.fp16.safetensors"
BF16 = "diffusion_pytorch_model.bf16.safetensors"


def spec(channels=3):
    return ImageSpec(channels, 16, ("0", "1"), (0.5,) * channels, (0.2,) * channels)


def prior_at(path, **options):
    return build_prior(PriorConfig(kind="autoencoder", path=str(path), **options), spec())


def sample(prior, n=2):
    return prior.sample(torch.zeros(n, dtype=torch.long), rng=derive(0, "test"))


def image_of(path, **options):
    prior = prior_at(path, **options)
    return prior.decode(sample(prior))


def refused(path, **options):
    """Return the one sentence with which the prior at ``path`` is refused."""
    with pytest.raises(ValueError, match=r"prior\.path") as caught:
        prior_at(path, **options)
    said = str(caught.value)
    assert "\n" not in said
    assert said.count("; ") >= 1  # the remedy
    return said


def reconfigured(folder, drop=(), **changes):
    config = json.loads((folder / "config.json").read_text())
    config = {k: v for k, v in (config | changes).items() if k not in drop}
    (folder / "config.json").write_text(json.dumps(config))


def rewritten(folder, change):
    weights = load_file(folder / WEIGHTS)
    save_file(change(dict(weights)), folder / WEIGHTS)


def sharded(folder, parts=3):
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names, listed = sorted(weights), {}
    for part in range(parts):
        file = f"diffusion_pytorch_model-{part + 1:05d}-of-{parts:05d}.safetensors"
        chosen = names[part::parts]
        save_file({n: weights[n] for n in chosen}, folder / file)
        listed |= dict.fromkeys(chosen, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": listed}))


@pytest.fixture(params=list(SAVERS))
def saved(request, tmp_path):
    SAVERS[request.param](tmp_path)
    return tmp_path


# Tensors


def test_a_missing_tensor_is_named(saved):
    name = next(n for n in sorted(load_file(saved / WEIGHTS)) if n.startswith("decoder"))
    rewritten(saved, lambda w: {k: v for k, v in w.items() if k != name})
    assert f"1 tensors are missing by that config, such as {name}" in refused(saved)


def test_an_unknown_tensor_is_named(saved):
    rewritten(saved, lambda w: w | {"decoder.extra.weight": torch.ones(1)})
    assert "unknown by that config, such as decoder.extra.weight" in refused(saved)


def test_a_tensor_of_another_shape_is_named(saved):
    name = next(n for n, t in load_file(saved / WEIGHTS).items() if t.ndim == 4)
    rewritten(saved, lambda w: w | {name: w[name][:1].clone()})
    assert f"of another shape by that config, such as {name}" in refused(saved)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_weight_that_is_not_finite_is_named(saved, value):
    name = next(n for n in sorted(load_file(saved / WEIGHTS)) if n.startswith("decoder"))

    def spoil(weights):
        weights[name].view(-1)[-1] = value
        return weights

    rewritten(saved, spoil)
    assert f"{name} has NaN or infinity" in refused(saved)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.complex64])
def test_weights_that_are_no_real_numbers_are_refused(saved, dtype):
    rewritten(saved, lambda w: {k: v.to(dtype) for k, v in w.items()})
    assert f"is {dtype}" in refused(saved)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_precision_is_read_as_float32(saved, dtype):
    rewritten(saved, lambda w: {k: v.to(dtype) for k, v in w.items()})
    image = image_of(saved)
    rewritten(saved, lambda w: {k: v.float() for k, v in w.items()})
    assert image.dtype == torch.float32
    assert torch.equal(image, image_of(saved))


def test_weights_that_overflow_on_the_way_to_float32_are_refused(saved):
    rewritten(saved, lambda w: {k: torch.full_like(v, 1e300, dtype=torch.float64)
                                for k, v in w.items()})  # fmt: skip
    assert "NaN or infinity" in refused(saved)


def test_the_names_of_old_attention_layers_are_known(tmp_path):
    save_kl(tmp_path)
    image = image_of(tmp_path)
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def age(name):
        for now, then in new.items():
            name = name.replace(f".{now}.", f".{then}.")
        return name

    rewritten(tmp_path, lambda w: {age(k): v for k, v in w.items()})
    assert any(".query." in name for name in load_file(tmp_path / WEIGHTS))
    assert torch.equal(image_of(tmp_path), image)


# Files


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_a_file_that_was_cut_is_refused(saved, keep):
    data = (saved / WEIGHTS).read_bytes()
    count = int(len(data) * keep) if isinstance(keep, float) else keep
    (saved / WEIGHTS).write_bytes(data[:count])
    assert f"a whole {WEIGHTS}, and it is damaged or cut short" in refused(saved)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_a_pointer_of_git_lfs_is_told_from_the_file(saved, name):
    (saved / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:12ab\nsize 334643268\n"
    )
    said = refused(saved)
    assert f"{name} itself" in said
    assert "git lfs pull" in said


def test_the_only_variant_is_read_and_told(saved, caplog):
    rewritten(saved, lambda w: {k: v.half() for k, v in w.items()})
    image = image_of(saved)
    (saved / WEIGHTS).rename(saved / FP16)
    with caplog.at_level(logging.INFO, "feddgm_flwr"):
        assert torch.equal(image_of(saved), image)
    assert any(FP16 in record.message for record in caplog.records)


def test_two_variants_and_no_whole_are_named(saved):
    (saved / BF16).write_bytes((saved / WEIGHTS).read_bytes())
    (saved / WEIGHTS).rename(saved / FP16)
    assert f"{BF16} and {FP16}; copy the one that you mean" in refused(saved)


def test_the_whole_wins_over_a_variant(saved):
    image = image_of(saved)
    (saved / FP16).write_bytes(b"")
    assert torch.equal(image_of(saved), image)


def test_shards_are_put_together(saved):
    image = image_of(saved)
    sharded(saved)
    assert torch.equal(image_of(saved), image)


def test_shards_of_a_variant_are_put_together(saved):
    image = image_of(saved)
    sharded(saved)
    (saved / INDEX).rename(saved / f"{WEIGHTS}.index.fp16.json")
    assert torch.equal(image_of(saved), image)


def test_a_missing_shard_is_named(saved):
    sharded(saved)
    lost = sorted(saved.glob("*-of-*"))[1]
    lost.unlink()
    assert repr(lost.name) in refused(saved)


def test_an_index_reaches_no_file_elsewhere(saved, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / WEIGHTS
    (saved / WEIGHTS).rename(other)
    listed = dict.fromkeys(load_file(other), f"../{other.parent.name}/{WEIGHTS}")
    (saved / INDEX).write_text(json.dumps({"weight_map": listed}))
    assert "fetch all shards" in refused(saved)


def test_a_tensor_that_no_shard_holds_is_named(saved):
    sharded(saved)
    about = json.loads((saved / INDEX).read_text())
    about["weight_map"]["decoder.lost"] = next(iter(about["weight_map"].values()))
    (saved / INDEX).write_text(json.dumps(about))
    assert "that no shard holds, such as decoder.lost" in refused(saved)


@pytest.mark.parametrize(
    "name", ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.bin"]
)
def test_a_pickle_is_never_opened(saved, name):
    torch.save(load_file(saved / WEIGHTS), saved / name)
    (saved / WEIGHTS).unlink()
    said = refused(saved)
    assert f"has {name}, which is a pickle" in said
    assert "save_pretrained" in said


def test_a_folder_without_weights_says_what_it_has(saved):
    (saved / WEIGHTS).rename(saved / "model.ckpt")
    assert "and has config.json, model.ckpt; fetch the weights too" in refused(saved)


# config.json


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "\x00"])
def test_a_config_that_is_no_json_object_is_refused(saved, text):
    (saved / "config.json").write_text(text)
    assert "config.json" in refused(saved)


def test_a_missing_config_says_what_is_there(saved):
    (saved / "config.json").unlink()
    assert f"must hold config.json and {WEIGHTS}" in refused(saved)
    assert f"has {WEIGHTS}; give" in refused(saved)


@pytest.mark.parametrize("part", ["vae", "movq"])
def test_a_whole_pipeline_names_its_autoencoder(tmp_path, part):
    save_vq(tmp_path / part)
    parts = {
        "_class_name": "P",
        "unet": ["diffusers", "UNet2DModel"],
        part: ["diffusers", "VQModel"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(parts))
    assert f'prior.subfolder="{part}"' in refused(tmp_path)
    assert image_of(tmp_path, subfolder=part).shape == (2, 3, 16, 16)


def test_a_subfolder_that_is_not_there_is_not_its_parent(saved):
    assert "(subfolder 'vae')" in refused(saved, subfolder="vae")


def test_a_file_instead_of_its_folder(saved):
    assert "must be a folder, got a file" in refused(saved / WEIGHTS)


def test_another_class_and_another_library_are_named(saved):
    reconfigured(saved, _class_name="AutoencoderKLWan")
    assert "says 'AutoencoderKLWan'" in refused(saved)
    reconfigured(saved, drop=["_class_name"], architectures=["ViTMAEModel"])
    assert "another library's (['ViTMAEModel'])" in refused(saved)


@pytest.mark.parametrize("channels", [0, 2, 4, 16])
@pytest.mark.parametrize("name", ["kl", "tiny", "vq"])
def test_images_have_one_or_three_channels(tmp_path, name, channels):
    SAVERS[name](tmp_path, in_channels=3, out_channels=max(channels, 1))
    reconfigured(tmp_path, out_channels=channels)
    assert f"1 or 3 channels, its config.json says {channels}" in refused(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"up_block_types": ["NoSuchBlock"] * 3}, {"norm_num_groups": 3}, {"block_out_channels": []}],
)
def test_a_config_of_no_model_is_refused(tmp_path, changes):
    save_kl(tmp_path)
    reconfigured(tmp_path, **changes)
    assert "from which AutoencoderKL can be built" in refused(tmp_path)


@pytest.mark.parametrize("id_", ["someone/no-such-model", "no-such-model"])
def test_a_hub_id_without_a_network_is_one_sentence(monkeypatch, tmp_path, id_):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert "with a network" in refused(id_)


@pytest.mark.parametrize("path", ["/no/such/folder", "a/b/c", "./here", "~/model", "ünknown/x"])
def test_a_folder_that_does_not_exist_is_one_sentence(path):
    assert "there is no such folder" in refused(path)


# What the file does not state


def test_a_vq_model_that_states_no_scaling_decodes_its_code_words_as_they_are(tmp_path):
    model = save_vq(tmp_path)
    reconfigured(tmp_path, drop=["scaling_factor"])
    latents = sample(prior_at(tmp_path))
    with torch.no_grad():
        expected = model.decode(latents, force_not_quantize=True).sample
    torch.testing.assert_close(image_of(tmp_path), (expected + 1) / 2)


@pytest.mark.parametrize("save", [save_tiny, save_pooled])
def test_a_tiny_model_that_states_no_scaling_has_unit_latents(tmp_path, save):
    save(tmp_path)
    with_it = image_of(tmp_path)
    reconfigured(tmp_path, drop=["scaling_factor", "shift_factor"])
    assert torch.equal(image_of(tmp_path), with_it)


def test_a_kl_model_of_four_channels_without_a_scaling_is_stable_diffusions(tmp_path, caplog):
    model = save_kl(tmp_path)
    reconfigured(tmp_path, drop=["scaling_factor", "shift_factor"])
    with caplog.at_level(logging.INFO, "feddgm_flwr"):
        latents = sample(prior_at(tmp_path))
    assert any("0.18215" in record.message for record in caplog.records)
    with torch.no_grad():
        expected = model.decode(latents / 0.18215).sample
    torch.testing.assert_close(image_of(tmp_path), (expected + 1) / 2)


def test_another_kl_model_must_state_its_scaling(tmp_path):
    save_kl(tmp_path, latent_channels=16)
    assert image_of(tmp_path).shape == (2, 3, 16, 16)
    reconfigured(tmp_path, drop=["scaling_factor"])
    assert "must state scaling_factor" in refused(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scaling_factor", 0), ("scaling_factor", -1.0), ("scaling_factor", "0.5"),
        ("scaling_factor", True), ("scaling_factor", [0.5]), ("shift_factor", "x"),
        ("latents_mean", [1.0, 2.0]), ("latents_std", [1.0, 1, 1, 0]),
        ("latents_std", ["1"] * 4), ("scaling_factor", float("nan")),
    ],
)  # fmt: skip
def test_a_statistic_that_is_no_such_number_is_named(tmp_path, key, value):
    save_kl(tmp_path)
    reconfigured(tmp_path, **{key: value})
    assert f"must state {key} as" in refused(tmp_path)


# One decode


def zeroed(weights):
    return {k: torch.zeros_like(v) for k, v in weights.items()}


def test_a_decoder_of_zeros_is_refused(saved):
    rewritten(saved, zeroed)
    assert "images of one colour" in refused(saved)


def test_a_decoder_that_overflows_is_refused(tmp_path):
    save_tiny(tmp_path)
    rewritten(tmp_path, lambda w: {k: v * 1e30 for k, v in w.items()})
    assert "not finite" in refused(tmp_path)


def test_a_decoder_that_does_not_look_at_its_latent_is_refused(tmp_path):
    save_kl(tmp_path)

    def deafen(weights):
        return weights | {k: torch.zeros_like(weights[k]) for k in weights if "post_quant" in k}

    rewritten(tmp_path, deafen)
    said = refused(tmp_path)
    assert "the same image of every latent" in said or "one colour" in said


def test_a_decoder_of_another_step_than_its_config_says_is_refused(tmp_path):
    save_tiny(tmp_path)
    reconfigured(tmp_path, upsampling_scaling_factor=3)
    prior = prior_at(tmp_path)
    assert prior.decode(sample(prior)).shape == (2, 3, 16, 16)


def test_loading_draws_nothing_from_global_randomness(saved):
    before = torch.get_rng_state()
    prior_at(saved)
    assert torch.equal(torch.get_rng_state(), before)


# The bank of a glyph prior


@pytest.fixture
def glyphs(tmp_path):
    shipped = feddgm_priors.path("glyphs")
    for name in ("config.json", WEIGHTS, FILE):
        (tmp_path / name).write_bytes((shipped / name).read_bytes())
    return tmp_path


def bank_refused(folder):
    with pytest.raises(ValueError, match=r"prior\.path") as caught:
        build_prior(PriorConfig(kind="glyphs", path=str(folder)), spec(1))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rebanked(folder, codes=None, labels=None, **about):
    bank = LatentBank.load(folder)
    tensors = {
        "codes": bank.codes if codes is None else codes,
        "labels": bank.labels.to(torch.int16) if labels is None else labels,
    }
    meta = {"classes": json.dumps(bank.classes), "scale": repr(bank.scale)} | about
    save_file(tensors, folder / FILE, {k: v for k, v in meta.items() if v is not None})


def test_the_copy_of_the_shipped_prior_is_the_shipped_prior(glyphs):
    ours = build_prior(PriorConfig(kind="glyphs", path=str(glyphs)), spec(1))
    assert ours.fingerprint == build_prior(PriorConfig(kind="glyphs"), spec(1)).fingerprint


@pytest.mark.parametrize("keep", [0, 10, 0.5])
def test_a_bank_that_was_cut_is_refused(glyphs, keep):
    data = (glyphs / FILE).read_bytes()
    (glyphs / FILE).write_bytes(data[: int(keep * len(data)) if keep < 1 else keep])
    assert f"must hold a {FILE}" in bank_refused(glyphs)


def test_a_bank_that_is_a_pointer_is_refused(glyphs):
    (glyphs / FILE).write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "git lfs pull" in bank_refused(glyphs)


@pytest.mark.parametrize("scale", ["nan", "inf", "0", "-1.0", "x", ""])
def test_a_bank_of_no_scale_is_refused(glyphs, scale):
    rebanked(glyphs, scale=scale)
    assert f"must hold a {FILE}" in bank_refused(glyphs)


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        ({"scale": None}, "no scale"), ({"classes": None}, "no classes"),
        ({"classes": "{"}, "cannot be used"), ({"classes": "[1]"}, "not names"),
        ({"classes": '["a"]'}, "labels from 0 to"),
    ],
)  # fmt: skip
def test_a_bank_of_no_classes_is_refused(glyphs, about, reason):
    rebanked(glyphs, **about)
    assert reason in bank_refused(glyphs)


def test_a_class_without_a_latent_is_named(glyphs):
    names = [*LatentBank.load(glyphs).classes, "more"]
    rebanked(glyphs, classes=json.dumps(names))
    assert "class 'more' has no latent" in bank_refused(glyphs)


def test_labels_out_of_range_and_of_another_number_are_refused(glyphs):
    bank = LatentBank.load(glyphs)
    rebanked(glyphs, labels=(bank.labels - 1).to(torch.int16))
    assert "labels from -1 to" in bank_refused(glyphs)
    rebanked_labels = torch.zeros(3, dtype=torch.int16)
    save_file(
        {"codes": bank.codes, "labels": rebanked_labels},
        glyphs / FILE,
        {"classes": '["a"]', "scale": "1.0"},
    )
    assert "and 3 labels" in bank_refused(glyphs)


@pytest.mark.parametrize("shape", [(3, 5, 7, 7), (3, 1, 7, 7), (3, 4, 7, 6), (3, 4, 49)])
def test_codes_of_another_shape_than_the_decoders_are_refused(glyphs, shape):
    codes = torch.randint(0, 256, shape, dtype=torch.uint8, generator=derive(0, "codes"))
    rebanked(glyphs, codes=codes, labels=torch.zeros(3, dtype=torch.int16), classes='["a"]')
    said = bank_refused(glyphs)
    assert "channels" in said or "of shape" in said


def test_codes_in_another_type_are_refused(glyphs):
    rebanked(glyphs, codes=LatentBank.load(glyphs).codes.float())
    assert "torch.float32" in bank_refused(glyphs)
