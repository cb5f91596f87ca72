import pickle
import subprocess
import sys

import pytest
import torch
from small_models import save_kl, save_pooled, save_tiny, save_vq
from torch.nn import functional

from feddgm_flwr.core.images import ImageSpec
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.priors import build_prior
from feddgm_flwr.priors.autoencoder import Decoder, load_autoencoder
from feddgm_flwr.priors.settings import PriorConfig

SAVERS = {"kl": save_kl, "tiny": save_tiny, "vq": save_vq, "pooled": save_pooled}
MAX_BLOCK = {"kl": 5, "tiny": 7, "vq": 4, "pooled": 7}


def spec(size=16, channels=3):
    return ImageSpec(channels, size, ("x", "y"), (0.5,) * channels, (0.2,) * channels)


def prior_at(path, size=16, channels=3, **options):
    config = PriorConfig(kind="autoencoder", path=str(path), **options)
    return build_prior(config, spec(size, channels))


def sample(prior, n=3):
    return prior.sample(torch.zeros(n, dtype=torch.long), rng=derive(0, "test"))


@pytest.fixture(params=list(SAVERS))
def saved(request, tmp_path):
    SAVERS[request.param](tmp_path)
    return request.param, tmp_path


def test_decoding_agrees_with_diffusers_own_in_its_units(tmp_path):
    kl = save_kl(tmp_path / "kl", latents_mean=(1.0, 2, 3, 4), latents_std=(1.0, 2, 3, 4))
    tiny, vq = save_tiny(tmp_path / "tiny"), save_vq(tmp_path / "vq")
    mean = std = torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1, 1)
    undo = {
        "kl": lambda z: kl.decode(z * std / 0.5 + mean),
        "tiny": tiny.decode,
        "vq": lambda z: vq.decode(z / 0.18215, force_not_quantize=True),
    }
    for name, decode in undo.items():
        prior = prior_at(tmp_path / name)
        latents = sample(prior)
        with torch.no_grad():
            torch.testing.assert_close(prior.decode(latents), (decode(latents).sample + 1) / 2)


def test_shift_factor_moves_the_latents(tmp_path):
    model = save_kl(tmp_path)
    prior = prior_at(tmp_path)
    latents = sample(prior)
    with torch.no_grad():
        expected = (model.decode(latents / 0.5 + 0.25).sample + 1) / 2
        torch.testing.assert_close(prior.decode(latents), expected)


def test_every_feature_block_composes_to_the_image_of_block_zero(saved):
    kind, path = saved
    whole = prior_at(path)
    image = whole.decode(sample(whole))
    for block in range(1, MAX_BLOCK[kind] + 1):
        cut = prior_at(path, feature_block=block)
        torch.testing.assert_close(cut.decode(sample(cut)), image)


def test_too_deep_a_feature_block_names_the_deepest(saved):
    kind, path = saved
    deepest = MAX_BLOCK[kind]
    with pytest.raises(ValueError, match=f"prior.feature-block must be at most {deepest} "):
        prior_at(path, feature_block=deepest + 1)


def test_a_prior_is_frozen_but_its_latents_get_gradients(saved):
    _, path = saved
    prior = prior_at(path)
    latents = sample(prior).requires_grad_()
    prior.decode(latents).square().sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in prior._decoder.parameters())
    assert not prior._decoder.training


def test_the_gradient_is_that_of_finite_differences(tmp_path):
    save_kl(tmp_path)
    decoder = Decoder(load_autoencoder(str(tmp_path)), 4).double()
    feature = torch.randn(1, 8, 3, 3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(decoder, (feature,))


def test_a_prior_survives_the_way_to_another_process(saved):
    _, path = saved
    prior = prior_at(path, feature_block=1)
    again = pickle.loads(pickle.dumps(prior))
    assert torch.equal(again.decode(sample(again)), prior.decode(sample(prior)))


def test_latents_are_seeded_and_of_unit_statistics(saved):
    _, path = saved
    prior = prior_at(path)
    latents = sample(prior, 64)
    assert torch.equal(latents, sample(prior, 64))
    assert abs(latents.mean()) < 0.1
    assert abs(latents.std() - 1) < 0.1
    assert not prior.conditional


@pytest.mark.parametrize(("size", "scale"), [(16, 1), (16, 2), (15, 1), (10, 3), (28, 2)])
def test_images_have_the_data_sets_size_whatever_the_decoders_step(tmp_path, size, scale):
    save_tiny(tmp_path)
    prior = prior_at(tmp_path, size, image_scale=scale)
    assert prior.decode(sample(prior)).shape == (3, 3, size, size)


def test_an_odd_size_is_the_middle_of_the_next_multiple(tmp_path):
    save_tiny(tmp_path)
    whole, cut = prior_at(tmp_path, 16), prior_at(tmp_path, 14)
    latents = sample(whole)
    assert torch.equal(cut.decode(latents), whole.decode(latents)[..., 1:15, 1:15])


def test_image_scale_averages_a_larger_image(tmp_path):
    save_tiny(tmp_path)
    large, small = prior_at(tmp_path, 32), prior_at(tmp_path, 16, image_scale=2)
    latents = sample(large)
    expected = functional.avg_pool2d(large.decode(latents), 2)
    torch.testing.assert_close(small.decode(latents), expected)


def test_grey_data_see_the_mean_of_the_colours(tmp_path):
    save_tiny(tmp_path)
    colour, grey = prior_at(tmp_path), prior_at(tmp_path, channels=1)
    latents = sample(colour)
    expected = colour.decode(latents).mean(1, keepdim=True)
    torch.testing.assert_close(grey.decode(latents), expected)


def test_a_grey_autoencoder_is_refused_for_colour_data(tmp_path):
    save_tiny(tmp_path, in_channels=1, out_channels=1)
    with pytest.raises(ValueError, match=r"1 channel, the data set has 3"):
        prior_at(tmp_path)


def test_a_spatially_normalised_vq_model_decodes_whole(tmp_path):
    model = save_vq(tmp_path, norm_type="spatial", vq_embed_dim=3, block_out_channels=(32, 32))
    prior = prior_at(tmp_path)
    latents = sample(prior)
    with torch.no_grad():
        expected = model.decode(latents / 0.18215, force_not_quantize=True).sample
        torch.testing.assert_close(prior.decode(latents), (expected + 1) / 2)
    with pytest.raises(ValueError, match="at most 0"):
        prior_at(tmp_path, feature_block=1)


def test_pooled_blocks_are_found_in_the_weights_and_all_weights_are_used(tmp_path):
    weights = save_pooled(tmp_path)
    model = load_autoencoder(str(tmp_path))
    assert set(model.state_dict()) == set(weights)
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name].float()), name


def test_a_pooled_block_adds_its_branch_before_the_usual_block(tmp_path):
    save_pooled(tmp_path)
    block = load_autoencoder(str(tmp_path)).decoder.layers[2]
    x = torch.randn(2, 8, 4, 4, generator=derive(0, "test"))
    y = functional.conv2d(x, block.pool[0].weight)
    y = functional.group_norm(y, 4, block.pool[1].weight, block.pool[1].bias).relu()
    wide = x + functional.conv2d(y, block.pool[3].weight)
    torch.testing.assert_close(block(x), (block.conv(wide) + wide).relu())


def test_a_subfolder_is_looked_into(tmp_path):
    save_kl(tmp_path / "vae")
    prior = prior_at(tmp_path, subfolder="vae")
    assert prior.decode(sample(prior)).shape == (3, 3, 16, 16)


def test_a_missing_folder_gives_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"prior.path .*must be a hub id or a folder"):
        prior_at(tmp_path / "nowhere")


def test_a_foreign_class_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(ValueError, match=r"its config\.json says 'UNet2DModel'"):
        prior_at(tmp_path)


@pytest.mark.slow
def test_importing_generators_does_not_import_diffusers():
    code = "import sys, feddgm_flwr.priors; assert 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
