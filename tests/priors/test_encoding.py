"""Laws of a bank that an autoencoder makes of pictures, without training."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import save_kl, save_pooled, save_tiny, save_vq
from torch.nn import functional

from feddgm_flwr.core.images import ImageSpec
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.priors import build_prior, gathering
from feddgm_flwr.priors.autoencoder import centre_crop, load_autoencoder
from feddgm_flwr.priors.bank import FILE, LatentBank
from feddgm_flwr.priors.encoding import Encoder, padded
from feddgm_flwr.priors.gathering import Batch, batches, gather
from feddgm_flwr.priors.pretraining import cli, encode
from feddgm_flwr.priors.settings import PriorConfig

NAMES = ("cat", "dog")


def spec(size=16, channels=3, classes=NAMES):
    return ImageSpec(channels, size, classes, (0.5,) * channels, (0.2,) * channels)


def pixels(n=6, side=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3)).astype(np.uint8)


def write_npz(path, n=6, side=16, grey=False):
    images = pixels(n, side)
    np.savez(path, train_images=images[..., 0] if grey else images, train_labels=np.arange(n) % 2)
    return path


def write_folder(path, n=6):
    for i, picture in enumerate(pixels(n)):
        home = path / NAMES[i % 2]
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(home / f"{i}.png")
    return path


def pretrain(tmp_path, images, *more, out="prior", names=True):
    said = ["--class-names", ",".join(NAMES)] if names else []
    cli.main(list(map(str, [
        "--autoencoder", tmp_path / "model", "--images", images, "--out", tmp_path / out,
        "--size", 16, *said, *more,
    ])))  # fmt: skip
    return tmp_path / out


def prior_in(folder, size=16, channels=3, **options):
    config = PriorConfig(**{"kind": "autoencoder", "path": str(folder)} | options)
    return build_prior(config, spec(size, channels))


def refused(capsys, call):
    with pytest.raises(SystemExit) as ended:
        call()
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1].removeprefix("feddgm-pretrain: error: ")


@pytest.mark.parametrize("size", [15, 16, 17, 28])
def test_padding_is_what_the_prior_cuts_off(size):
    images = torch.rand(2, 3, size, size, generator=derive(0, "test"))
    larger = padded(images, 8)
    assert larger.shape[-1] == 8 * -(-size // 8)
    assert torch.equal(centre_crop(larger, size), images)


def test_latents_are_diffusers_own_in_units_of_the_decoder(tmp_path):
    kl = save_kl(tmp_path / "kl", latents_mean=(1.0, 2, 3, 4), latents_std=(1.0, 2, 3, 4))
    tiny, vq = save_tiny(tmp_path / "tiny"), save_vq(tmp_path / "vq", scaling_factor=0.5)
    mean = std = torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1, 1)
    images = torch.rand(2, 3, 16, 16, generator=derive(0, "test"))
    with torch.no_grad():
        expected = {
            "kl": (kl.encode(images * 2 - 1).latent_dist.mode() - mean) / std * 0.5,
            "tiny": tiny.encode(images * 2 - 1).latents,
            "vq": vq.encode(images * 2 - 1).latents * 0.5,
        }
    for name, latents in expected.items():
        found = Encoder(load_autoencoder(str(tmp_path / name)))(images)
        torch.testing.assert_close(found, latents)


@pytest.mark.parametrize("save", [save_kl, save_tiny, save_vq, save_pooled])
@pytest.mark.parametrize("kind", ["auto", "autoencoder"])
def test_the_command_makes_a_conditional_prior_of_any_family(tmp_path, save, kind):
    save(tmp_path / "model")
    out = pretrain(tmp_path, write_npz(tmp_path / "public.npz"))
    prior = prior_in(out, kind=kind)
    assert prior.conditional
    latents = prior.sample(torch.tensor([0, 1, 1]), rng=derive(0, "test"))
    assert prior.decode(latents).shape == (3, 3, 16, 16)
    assert not (out / gathering.PARTS).exists()
    with Image.open(out / "samples.png") as image:
        assert image.size == (20 * 16, 2 * 16)


def test_the_bank_holds_the_encodings_of_the_pictures(tmp_path):
    save_tiny(tmp_path / "model")
    bank = LatentBank.load(pretrain(tmp_path, write_npz(tmp_path / "public.npz")))
    images = torch.from_numpy(pixels()).permute(0, 3, 1, 2).float() / 255
    for label in (0, 1):
        expected = Encoder(load_autoencoder(str(tmp_path / "model")))(images[label::2])
        found = bank.latents[bank.labels == label]
        nearest = torch.cdist(expected.flatten(1), found.flatten(1), p=torch.inf)
        assert nearest.amin(1).max() <= 0.51 * bank.scale
    assert bank.classes == NAMES


def test_a_folder_of_pictures_gives_the_bank_that_the_same_pixels_give(tmp_path):
    save_tiny(tmp_path / "model")
    one = LatentBank.load(pretrain(tmp_path, write_npz(tmp_path / "public.npz"), out="one"))
    images = write_folder(tmp_path / "public")
    two = LatentBank.load(pretrain(tmp_path, images, out="two", names=False))
    assert torch.equal(one.codes, two.codes)
    assert torch.equal(one.labels, two.labels)


def test_enlarged_pictures_are_decoded_larger_and_averaged(tmp_path):
    save_tiny(tmp_path / "model")
    out = pretrain(tmp_path, write_npz(tmp_path / "public.npz"), "--image-scale", 2)
    prior = prior_in(out)  # the bank says the scale
    latents = prior.sample(torch.tensor([0]), rng=derive(0, "test"))
    assert latents.shape == (1, 4, 8, 8)
    plain = build_prior(
        PriorConfig(kind="autoencoder", path=str(tmp_path / "model")), spec(32)
    ).decode(latents)
    torch.testing.assert_close(prior.decode(latents), functional.avg_pool2d(plain, 2), atol=1e-3,
                               rtol=1e-2)  # fmt: skip
    assert prior_in(out, image_scale=2).conditional
    with pytest.raises(ValueError, match=r"prior\.image-scale must be 2.*got 3"):
        prior_in(out, image_scale=3)


@pytest.mark.parametrize("block", [1, 3])
def test_features_inside_the_decoder_come_from_the_bank_too(tmp_path, block):
    save_kl(tmp_path / "model")
    out = pretrain(tmp_path, write_npz(tmp_path / "public.npz"))
    labels = torch.tensor([0, 1])
    whole, cut = prior_in(out), prior_in(out, feature_block=block)
    features = cut.sample(labels, rng=derive(0, "test"))
    assert features.shape != whole.sample(labels, rng=derive(0, "test")).shape
    assert cut.conditional
    torch.testing.assert_close(
        cut.decode(features), whole.decode(whole.sample(labels, rng=derive(0, "test")))
    )


def test_at_most_so_many_pictures_a_class_are_encoded_and_the_seed_draws_them(tmp_path):
    save_tiny(tmp_path / "model")
    images = write_npz(tmp_path / "public.npz", n=40)
    few = [
        LatentBank.load(pretrain(tmp_path, images, "--per-class", 5, "--seed", seed, out=out))
        for out, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert torch.bincount(few[0].labels).tolist() == [5, 5]
    assert torch.equal(few[0].codes, few[1].codes)
    assert not torch.equal(few[0].codes, few[2].codes)


def test_grey_pictures_are_seen_by_a_colour_model_and_come_back_grey(tmp_path):
    save_tiny(tmp_path / "model")
    out = pretrain(tmp_path, write_npz(tmp_path / "public.npz", grey=True))
    prior = prior_in(out, channels=1)
    latents = prior.sample(torch.tensor([0, 1]), rng=derive(0, "test"))
    assert prior.decode(latents).shape == (2, 1, 16, 16)


def test_a_bank_is_part_of_the_fingerprint(tmp_path):
    save_tiny(tmp_path / "model")
    images = write_npz(tmp_path / "public.npz", n=40)
    made = [pretrain(tmp_path, images, "--per-class", n, out=f"{n}") for n in (3, 4)]
    assert prior_in(made[0]).fingerprint != prior_in(made[1]).fingerprint


def test_an_interrupted_encoding_ends_with_the_bank_of_the_whole_one(tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "BATCH", 2)
    save_tiny(tmp_path / "model")
    images = write_npz(tmp_path / "public.npz", n=12)
    whole = LatentBank.load(pretrain(tmp_path, images, out="whole"))
    seen = []
    real = Encoder.__call__

    def once_broken(self, batch):
        seen.append(len(batch))
        if len(seen) == 4:
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(Encoder, "__call__", once_broken)
    with pytest.raises(KeyboardInterrupt):
        pretrain(tmp_path, images, out="parts")
    parts = LatentBank.load(pretrain(tmp_path, images, out="parts"))
    assert len(seen) == 4 + 3
    assert torch.equal(whole.codes, parts.codes)
    pretrain(tmp_path, images, out="parts")  # whole: nothing is left to do
    assert len(seen) == 4 + 3


def test_another_run_s_folder_is_refused(tmp_path, capsys):
    save_tiny(tmp_path / "model")
    images = write_npz(tmp_path / "public.npz")
    pretrain(tmp_path, images)
    said = refused(capsys, lambda: pretrain(tmp_path, images, "--seed", 1))
    assert "making.json there tells of another" in said


def test_a_bank_of_other_classes_or_sides_is_refused_with_the_remedy(tmp_path):
    save_tiny(tmp_path / "model")
    out = pretrain(tmp_path, write_npz(tmp_path / "public.npz"))
    with pytest.raises(ValueError, match=r"lacks \['bird'\]"):
        build_prior(PriorConfig(kind="autoencoder", path=str(out)), spec(classes=("cat", "bird")))
    with pytest.raises(ValueError, match=r"feddgm-pretrain --autoencoder --size 32"):
        prior_in(out, size=32)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--image-scale", 0), "--image-scale must be 1 or more, got 0; correct it"),
        (("--per-class", 0), "--per-class must be 1 or more, got 0; correct it"),
        (("--size", 7), "--size must be 8 or more, got 7; correct it"),
    ],
)
def test_options_out_of_range_are_refused_in_a_line(tmp_path, capsys, arguments, said):
    found = refused(capsys, lambda: pretrain(tmp_path, tmp_path / "x.npz", *arguments))
    assert found == said


def test_an_npz_needs_class_names_and_a_picture_of_each(tmp_path, capsys):
    save_tiny(tmp_path / "model")
    images = write_npz(tmp_path / "public.npz")
    said = refused(capsys, lambda: pretrain(tmp_path, images, names=False))
    assert said.startswith("--class-names must be given")
    said = refused(
        capsys, lambda: pretrain(tmp_path, images, "--class-names", "cat,dog,cow", names=False)
    )
    assert "has none of ['cow']" in said


def test_an_autoencoder_without_images_is_refused(capsys):
    said = refused(capsys, lambda: cli.main(["--autoencoder", "x", "--out", "y"]))
    assert said.startswith("--images must name public images")


def test_batches_cover_each_class_once():
    assert batches([3, 0, 2], 2) == [Batch(0, 0, 2), Batch(0, 2, 1), Batch(2, 0, 2)]


def test_what_gives_no_latent_leaves_a_class_bare_and_is_refused(tmp_path):
    def make(batch):
        return torch.randn(batch.count if batch.label else 0, 2, 1, 1, generator=derive(0, "t"))

    told = []
    with pytest.raises(ValueError, match=r"\['cat'\] have none"):
        gather(
            tmp_path, {"of": 1}, NAMES, batches([2, 2], 2), make, size=8, image_scale=1,
            tell=lambda *now: told.append(now),
        )  # fmt: skip
    assert told == [(2, 4), (4, 4)]
    assert json.loads((tmp_path / "making.json").read_text()) == {"of": 1}
    assert not (tmp_path / FILE).exists()
