"""The surrogate ConvNet and the global models, on images in [0, 1] of 28 to 128 pixels.

Every model normalises in its own first layer, by constants that are not among its weights. None
uses dropout, whose masks would come from global randomness. What ``build_*`` returns has arbitrary
weights until ``initialise`` or ``load_params`` sets them. Knows no data set beyond its ``ImageSpec``
and nothing of training.
"""

import math
from collections import OrderedDict
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from feddgm_flwr.config import SurrogateConfig
from feddgm_flwr.images import ImageSpec

SMALL = 64
"""Largest side in pixels for which ResNets and AlexNet get a stem that keeps the resolution."""


class Normalize(nn.Module):
    """Subtract the mean and divide by the deviation, per channel; no parameters, no state."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ImageSpec) -> None:
        super().__init__()
        for name, values in (("mean", spec.mean), ("std", spec.std)):
            constant = torch.tensor(values).view(1, spec.channels, 1, 1)
            self.register_buffer(name, constant, persistent=False)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Return normalised images."""
        return (images - self.mean) / self.std


def build_surrogate(config: SurrogateConfig, spec: ImageSpec) -> nn.Module:
    """Return the ConvNet of the dataset-distillation literature.

    Blocks of 3x3 convolution, normalisation, ReLU and average pooling by two, then one linear
    layer. It is named ``classifier``, has a bias and sees only non-negative features: ``ownership``
    relies on all three.

    Raises
    ------
    ValueError
        The blocks would halve the image to nothing.
    """
    side = spec.size >> config.depth
    if side < 1:
        raise ValueError(
            f"surrogate.depth must be at most {int(math.log2(spec.size))} for images of "
            f"{spec.size} pixels, got {config.depth}; lower it with -c"
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict(normalize=Normalize(spec))
    channels = spec.channels
    for index in range(config.depth):
        layers[f"block{index + 1}"] = _block(channels, config)
        channels = config.width
    layers["flatten"] = nn.Flatten()
    layers["classifier"] = nn.Linear(channels * side**2, spec.num_classes)
    return nn.Sequential(layers)


def _block(channels: int, config: SurrogateConfig) -> nn.Sequential:
    width = config.width
    groups = {"instance": width, "group": math.gcd(width, max(1, width // 8)), "none": 0}
    norm = [nn.GroupNorm(groups[config.norm], width)] if groups[config.norm] else []
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1), *norm, nn.ReLU(), nn.AvgPool2d(2)
    )


def build_global_model(name: str, spec: ImageSpec, surrogate: SurrogateConfig) -> nn.Module:
    """Return a larger model for the synthetic union.

    ``convnet`` is the surrogate's architecture at width 128 or more; the others are torchvision's,
    untrained, with a stem and a head for small images.

    Raises
    ------
    ValueError
        An unknown name, or images too small for the model.
    """
    if name == "convnet":
        return build_surrogate(replace(surrogate, width=max(128, surrogate.width)), spec)
    builders = {"resnet18": _resnet, "resnet34": _resnet, "vgg11": _vgg11,
                "alexnet": _alexnet, "vit": _vit}
    if name not in builders:
        known = ("convnet", *builders)
        raise ValueError(
            f"global-model.names must be of {known}, got {name!r}; change it with -c"
        )
    network = builders[name](name, spec)
    return nn.Sequential(OrderedDict(normalize=Normalize(spec), network=network))


def _resnet(name: str, spec: ImageSpec) -> nn.Module:
    """Up to ``SMALL`` pixels the stem does not shrink: torchvision's would leave one pixel of 28."""
    from torchvision import models

    network: nn.Module = getattr(models, name)(weights=None, num_classes=spec.num_classes)
    if spec.size <= SMALL:
        network.conv1 = nn.Conv2d(spec.channels, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    else:
        network.conv1 = nn.Conv2d(spec.channels, 64, 7, stride=2, padding=3, bias=False)
    return network


def _vgg11(name: str, spec: ImageSpec) -> nn.Module:
    """With batch norm, without which eleven layers do not start at this initialisation."""
    from torchvision import models

    network: nn.Module = models.vgg11_bn(weights=None, num_classes=spec.num_classes)
    halvings = int(math.log2(spec.size))
    features: list[nn.Module] = []
    for layer in network.features.children():  # type: ignore[union-attr]
        pools = sum(isinstance(kept, nn.MaxPool2d) for kept in features)
        if not isinstance(layer, nn.MaxPool2d) or pools < halvings:
            features.append(layer)
    features[0] = nn.Conv2d(spec.channels, 64, 3, padding=1)
    network.features = nn.Sequential(*features)
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier = nn.Linear(512, spec.num_classes)
    return network


def _alexnet(name: str, spec: ImageSpec) -> nn.Module:
    """Up to ``SMALL`` pixels the first convolution does not shrink; one linear layer as head."""
    from torchvision import models

    if spec.size < 15:
        raise ValueError(
            f"global-model.names = 'alexnet' needs images of at least 15 pixels, got {spec.size}; "
            "choose another model"
        )
    network: nn.Module = models.alexnet(weights=None, num_classes=spec.num_classes)
    stem = (
        nn.Conv2d(spec.channels, 64, 5, padding=2)
        if spec.size <= SMALL
        else nn.Conv2d(spec.channels, 64, 11, stride=4, padding=2)
    )
    network.features[0] = stem  # type: ignore[index,operator]
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier = nn.Linear(256, spec.num_classes)
    return network


def _vit(name: str, spec: ImageSpec) -> nn.Module:
    """Six layers of width 192 on about 8 x 8 patches."""
    from torchvision.models import VisionTransformer

    patch = patch_size(spec.size)
    network: nn.Module = VisionTransformer(
        image_size=spec.size, patch_size=patch, num_layers=6, num_heads=3, hidden_dim=192,
        mlp_dim=384, num_classes=spec.num_classes,
    )
    network.conv_proj = nn.Conv2d(spec.channels, 192, patch, stride=patch)
    return network


def patch_size(size: int) -> int:
    """Return the divisor of ``size`` nearest to an eighth of it (28 -> 4, 32 -> 4, 128 -> 16)."""
    divisors = [d for d in range(1, size + 1) if size % d == 0]
    return min(divisors, key=lambda d: abs(d - size / 8))


@torch.no_grad()
def initialise(module: nn.Module, *, rng: torch.Generator) -> None:
    """Draw all weights anew from ``rng``, as torch's own defaults would.

    Convolutions and linear layers are Kaiming-uniform, normalisations the identity, attention
    Xavier-uniform, position embeddings normal (0.02). The draws do not depend on the device.

    Raises
    ------
    TypeError
        A layer whose initialisation is not known here.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            bound = 1 / math.sqrt(part.weight[0].numel())
            for p in part.parameters(recurse=False):
                _uniform(p, bound, rng)
        elif isinstance(part, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm):
            part.reset_parameters()
        elif isinstance(part, nn.MultiheadAttention):
            _uniform(part.in_proj_weight, math.sqrt(6 / sum(part.in_proj_weight.shape)), rng)
            part.in_proj_bias.zero_()
        else:
            _embeddings(part, rng)


def _embeddings(part: nn.Module, rng: torch.Generator) -> None:
    for name, p in part.named_parameters(recurse=False):
        match name:
            case "class_token":
                p.zero_()
            case "pos_embedding":
                p.copy_(0.02 * torch.randn(p.shape, generator=rng))
            case _:
                raise TypeError(
                    f"initialise knows no rule for parameter {name!r} of {type(part).__name__}; "
                    "add one"
                )


def _uniform(p: Tensor, bound: float, rng: torch.Generator) -> None:
    p.copy_((2 * torch.rand(p.shape, generator=rng) - 1) * bound)
