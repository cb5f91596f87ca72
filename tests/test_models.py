"""Models: shapes at every size, the surrogate's contract, seeded initialisation."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from feddgm_flwr.core.images import ImageSpec
from feddgm_flwr.core.models import (
    GLOBAL_MODELS,
    MOST_PATCHES,
    Normalize,
    SurrogateConfig,
    build_global_model,
    build_surrogate,
    initialise,
    patches,
)
from feddgm_flwr.core.params import params_of
from feddgm_flwr.core.seeding import derive

NAMES = GLOBAL_MODELS


def spec(size: int = 28, channels: int = 1) -> ImageSpec:
    return ImageSpec(channels, size, ("a", "b", "c"), (0.4,) * channels, (0.3,) * channels)


def ready(model: nn.Module, seed: int = 0) -> nn.Module:
    initialise(model, rng=derive(seed, "weights"))
    return model


def surrogate(size: int = 28, channels: int = 1, **config) -> nn.Module:
    return ready(build_surrogate(SurrogateConfig(**config), spec(size, channels)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3), (64, 3), (128, 3)])
def test_global_models_take_every_size(name, size, channels):
    model = ready(build_global_model(name, spec(size, channels), SurrogateConfig()))
    with torch.no_grad():
        logits = model.eval()(torch.rand(2, channels, size, size))
    assert logits.shape == (2, 3)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", NAMES)
def test_every_model_normalises_first_and_keeps_the_constants_out_of_its_weights(name):
    model = build_global_model(name, spec(), SurrogateConfig())
    first = next(iter(model.children()))
    assert isinstance(first, Normalize)
    x = torch.full((1, 1, 2, 2), 0.7)
    torch.testing.assert_close(first(x), torch.ones(1, 1, 2, 2))
    assert not any("mean" in k and "running" not in k for k in model.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_no_model_draws_from_global_randomness(name):
    model = ready(build_global_model(name, spec(), SurrogateConfig())).train()
    x, before = torch.rand(4, 1, 28, 28), torch.get_rng_state()
    model(x)
    initialise(model, rng=derive(0, "weights"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", NAMES)
def test_initialisation_follows_the_seed_alone_and_reaches_every_weight(name):
    built = [build_global_model(name, spec(), SurrogateConfig()) for _ in range(2)]
    with torch.no_grad():
        for p in built[0].parameters():
            p.fill_(7.0)
    a, b = (ready(model).state_dict() for model in built)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not any(bool((v == 7.0).any()) for v in a.values())
    other = ready(built[0], seed=1).state_dict()
    assert any(not torch.equal(other[k], b[k]) for k in b)


def test_initialisation_has_the_spread_of_torchs_own():
    theirs = [nn.Conv2d(64, 64, 3), nn.Linear(256, 256), nn.MultiheadAttention(64, 4)]
    for module in theirs:
        before = {k: v.clone() for k, v in module.state_dict().items()}
        initialise(module, rng=derive(0, "weights"))
        for name, value in module.state_dict().items():
            if value.ndim > 1:
                assert float(value.std()) == pytest.approx(float(before[name].std()), rel=0.05)
                assert float(value.abs().max()) == pytest.approx(
                    float(before[name].abs().max()), rel=0.05
                )


def test_initialisation_refuses_a_layer_that_it_does_not_know():
    with pytest.raises(TypeError, match="'weight' of PReLU"):
        initialise(nn.Sequential(nn.PReLU()), rng=derive(0, "weights"))


@pytest.mark.parametrize("norm", ["instance", "group", "none"])
@pytest.mark.parametrize(("size", "channels", "depth"), [(28, 1, 3), (32, 3, 5), (8, 1, 2)])
def test_surrogate_ends_in_a_linear_classifier_over_non_negative_features(
    norm, size, channels, depth
):
    model = surrogate(size, channels, depth=depth, width=12, norm=norm)
    name, last = list(model.named_modules())[-1]
    assert name == "classifier"
    assert isinstance(last, nn.Linear)
    assert last.bias is not None
    assert list(dict(model.named_parameters()))[-2:] == [
        "classifier.weight",
        "classifier.bias",
    ]
    seen = []
    last.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    model(torch.rand(3, channels, size, size))
    assert float(seen[0].min()) >= 0
    assert float(seen[0].max()) > 0


def test_paper_surrogate_has_as_many_weights_as_the_paper_says():
    ten = ImageSpec(3, 32, tuple("0123456789"), (0.5,) * 3, (0.25,) * 3)
    model = build_surrogate(SurrogateConfig(depth=5, width=128), ten)
    assert sum(p.numel() for p in model.parameters()) == 596_490


def test_instance_norm_looks_at_one_image_and_channel_at_a_time():
    model = surrogate(norm="instance", width=8)
    x = torch.rand(5, 1, 28, 28)
    torch.testing.assert_close(model(x)[:1], model(x[:1]))


def test_surrogate_runs_functionally_and_in_double_precision():
    model = surrogate(width=8).double()
    params, x = params_of(model), torch.rand(2, 1, 28, 28, dtype=torch.float64)
    expected = model(x)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    torch.testing.assert_close(functional_call(model, params, (x,)), expected)
    assert expected.dtype == torch.float64


def test_depth_beyond_the_image_is_refused_with_the_depth_that_fits():
    with pytest.raises(ValueError, match="at most 4 for images of 28 pixels, got 5"):
        surrogate(28, depth=5)


def test_alexnet_refuses_images_that_it_would_pool_to_nothing():
    with pytest.raises(ValueError, match="at least 15 pixels, got 8"):
        build_global_model("alexnet", spec(8), SurrogateConfig())


def test_the_models_that_a_config_may_name_are_those_that_are_tested_here():
    assert set(GLOBAL_MODELS) == set(NAMES)


def test_unknown_global_model_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"resnet18.*got 'resnet50'"):
        build_global_model("resnet50", spec(), SurrogateConfig())


def test_convnet_is_the_surrogate_made_wide():
    model = build_global_model("convnet", spec(), SurrogateConfig(depth=3, width=32))
    assert model.get_submodule("block1.0").out_channels == 128
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == 3


@pytest.mark.parametrize("size", range(8, 257))
def test_vit_has_a_bounded_number_of_patches_and_keeps_those_that_divide(size):
    patch, rim = patches(size)
    divisors = [d for d in range(1, size + 1) if size % d == 0]
    nearest = min(divisors, key=lambda d: abs(d - size / 8))
    assert (size + rim) % patch == 0
    assert rim < patch
    assert 4 <= (size + rim) // patch <= MOST_PATCHES
    if size // nearest <= MOST_PATCHES:
        assert (patch, rim) == (nearest, 0)


@pytest.mark.parametrize(("size", "patch", "side"), [(53, 7, 56), (106, 13, 117), (31, 4, 32)])
def test_vit_surrounds_an_awkward_side_with_the_mean(size, patch, side):
    model = ready(build_global_model("vit", spec(size), SurrogateConfig()))
    seen = []
    model.get_submodule("network.vit.conv_proj").register_forward_pre_hook(
        lambda layer, args: seen.append((layer.kernel_size, args[0]))
    )
    assert model(torch.full((2, 1, size, size), 0.7)).shape == (2, 3)
    ((kernel, padded),) = seen
    assert kernel == (patch, patch)
    assert padded.shape == (2, 1, side, side)
    torch.testing.assert_close(padded.sum(), torch.tensor(2.0 * size * size))
    assert padded[..., 0, :].abs().max() == 0 or side - size == 1
    assert padded[..., -1, :].abs().max() == 0
