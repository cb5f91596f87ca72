"""The surrogate ConvNet and the global models, on images in [0, 1] of 16 to 128 pixels.

Every model normalises in its own first layer, by constants that are not among its
weights. None uses dropout, whose masks would come from global randomness. What
``build_*`` returns has arbitrary weights until ``initialise`` or ``load_params`` sets
them. Knows no data set beyond its ``ImageSpec`` and nothing of training.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from feddgm_flwr.core.images import ImageSpec
from feddgm_flwr.core.params import Params
from feddgm_flwr.core.settings import Settings, Words, check, setting

SMALL = 64
"""Up to this side in pixels, the stems of ResNets and AlexNet keep the resolution."""
MOST_PATCHES = 20
"""Patches a side of the vision transformer, at most."""
SURROGATE = "surrogate"
"""Name of the surrogate; a narrower one is called ``surrogate-16`` by its width."""

HEAD = "classifier"
"""Name of the surrogate's last layer."""


def are_widths(words: str) -> bool:
    """Whether ``words`` are whole numbers >= 1 joined by commas, or none."""
    return not words or all(re.fullmatch(r"[1-9][0-9]{0,5}", w.strip()) for w in words.split(","))


@dataclass(frozen=True, kw_only=True)
class SurrogateConfig(Settings):
    """The small ConvNet that travels between server and clients."""

    section: ClassVar[str] = "surrogate"

    depth: int = setting(3, "Conv blocks, each halving the side.", ge=1, le=8, paper=5)
    width: int = setting(32, "Channels of every block.", ge=1, paper=128)
    narrow_widths: str = setting(
        "",
        "Widths below `width`, for weaker devices: a surrogate each, and all learn from the images "
        "of all clients. Clients take turns by partition id, `width` first (`16`: every second "
        "client has 16; `16,16`: two of three), unless a device's node-config says "
        "`surrogate-width`. For feddgm alone, since the others average parameters.",
        words=Words(fit=are_widths, expected="whole numbers >= 1 joined by ',', or \"\""),
    )
    norm: Literal["instance", "group", "none"] = setting(
        "instance",
        "Normalisation after each convolution; batch norm has no functional unroll.",
    )

    def __post_init__(self) -> None:
        """Check that narrower widths are narrower."""
        super().__post_init__()
        check(
            all(width < self.width for width in self.widths[1:]),
            "surrogate.narrow-widths",
            self.narrow_widths,
            f"widths below surrogate.width = {self.width}",
        )

    @property
    def widths(self) -> tuple[int, ...]:
        """The clients' widths in turn; the first is ``width``, the others may repeat."""
        return (self.width, *(int(w) for w in self.narrow_widths.split(",") if w))

    @property
    def architectures(self) -> "dict[str, SurrogateConfig]":
        """Name -> what to build, one a width, the widest first."""
        return {
            self.name_of(width): replace(self, width=width, narrow_widths="")
            for width in sorted(set(self.widths), reverse=True)
        }

    def name_of(self, width: int) -> str:
        """Return the name of the surrogate of one of the ``widths``."""
        return SURROGATE if width == self.width else f"{SURROGATE}-{width}"

    def name_for(self, partition_id: int, said: int = 0) -> str:
        """Return which surrogate a client trains: of the width its device said, or in its turn."""
        return self.name_of(said or self.widths[partition_id % len(self.widths)])


class Normalize(nn.Module):
    """Subtract the mean, divide by the deviation, per channel; no weights, no state."""

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


class ConvNet(nn.Sequential):
    """The ConvNet of the dataset-distillation literature.

    Blocks of 3x3 convolution, normalisation, ReLU and average pooling by two, then one
    linear layer. It is named ``classifier``, has a bias and sees only non-negative
    features: ``ownership`` relies on all three; ``convnet`` on the whole design.

    Attributes
    ----------
    groups
        Of the group norm in each block; 0 without norm.
    """

    normalize: Normalize

    def __init__(self, config: SurrogateConfig, spec: ImageSpec) -> None:
        self.depth, self.width = config.depth, config.width
        match config.norm:
            case "instance":
                self.groups = self.width
            case "group":
                self.groups = math.gcd(self.width, max(1, self.width // 8))
            case "none":
                self.groups = 0
        layers: OrderedDict[str, nn.Module] = OrderedDict(normalize=Normalize(spec))
        channels = spec.channels
        for index in range(self.depth):
            layers[f"block{index + 1}"] = self._block(channels)
            channels = self.width
        layers["flatten"] = nn.Flatten()
        layers[HEAD] = nn.Linear(channels * (spec.size >> self.depth) ** 2, spec.num_classes)
        super().__init__(layers)

    def _block(self, channels: int) -> nn.Sequential:
        norm = [nn.GroupNorm(self.groups, self.width)] if self.groups else []
        return nn.Sequential(
            nn.Conv2d(channels, self.width, 3, padding=1), *norm, nn.ReLU(), nn.AvgPool2d(2)
        )


def build_surrogate(config: SurrogateConfig, spec: ImageSpec) -> ConvNet:
    """Return the surrogate.

    Raises
    ------
    ValueError
        The blocks would halve the image to nothing.
    """
    if spec.size >> config.depth < 1:
        most = int(math.log2(spec.size))
        raise ValueError(
            f"surrogate.depth must be at most {most} for images of {spec.size} pixels, "
            f"got {config.depth}; lower it with -c"
        )
    return ConvNet(config, spec)


def extractor(model: nn.Module) -> nn.Module:
    """Return all of a surrogate but its last layer, the classifier: the same layers."""
    return nn.Sequential(OrderedDict(list(model.named_children())[:-1]))


def features(
    model: nn.Module, params: Params, images: Float[Tensor, "n c h w"]
) -> Float[Tensor, "n d"]:
    """Return what a surrogate like ``model``, with other ``params``, hands to its classifier."""
    own = {k: p.to(images) for k, p in params.items() if not k.startswith(f"{HEAD}.")}
    found: Tensor = functional_call(extractor(model), own, (images,))
    return found


def build_global_model(name: str, spec: ImageSpec, surrogate: SurrogateConfig) -> nn.Module:
    """Return a larger model for the synthetic union.

    ``convnet`` is the surrogate's architecture at width 128 or more; the others are
    torchvision's, untrained, with a stem and a head for small images.

    Raises
    ------
    ValueError
        An unknown name, or images too small for the model.
    """
    if name not in GLOBAL_MODELS:
        raise ValueError(
            f"global-model.names must be of {', '.join(GLOBAL_MODELS)}, got {name!r}; "
            "change it with -c"
        )
    if name == "convnet":
        wide = replace(surrogate, width=max(128, surrogate.width))
        return build_surrogate(wide, spec)
    network = NETWORKS[name](spec)
    return nn.Sequential(OrderedDict(normalize=Normalize(spec), network=network))


def _resnet(name: str, spec: ImageSpec) -> nn.Module:
    """Return a ResNet; torchvision's stem would leave 28 pixels a single one."""
    from torchvision import models

    network: nn.Module = getattr(models, name)(num_classes=spec.num_classes)
    if spec.size <= SMALL:
        network.conv1 = nn.Conv2d(spec.channels, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    else:
        network.conv1 = nn.Conv2d(spec.channels, 64, 7, stride=2, padding=3, bias=False)
    return network


def _vgg11(spec: ImageSpec) -> nn.Module:
    """Return VGG-11 with batch norm, one linear layer and as many halvings as fit.

    Without the norm eleven layers do not start to learn from torch's initialisation.
    """
    from torchvision.models.vgg import cfgs, make_layers

    # torchvision's whole VGG would first fill 120 million weights of a head that goes.
    plan: list[int | str] = cfgs["A"]
    halvings = [index for index, entry in enumerate(plan) if entry == "M"]
    extra = halvings[int(math.log2(spec.size)) :]
    plan = [entry for index, entry in enumerate(plan) if index not in extra]
    layers = list(make_layers(plan, batch_norm=True).children())
    layers[0] = nn.Conv2d(spec.channels, 64, 3, padding=1)
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*layers),
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=nn.Linear(512, spec.num_classes),
        )
    )


def _alexnet(spec: ImageSpec) -> nn.Module:
    """Return AlexNet with one linear layer and a first convolution for the size."""
    from torchvision import models

    if spec.size < 15:
        raise ValueError(
            "global-model.names = 'alexnet' needs images of at least 15 pixels, "
            f"got {spec.size}; choose another model"
        )
    network: nn.Module = models.alexnet(num_classes=spec.num_classes)
    stem = (
        nn.Conv2d(spec.channels, 64, 5, padding=2)
        if spec.size <= SMALL
        else nn.Conv2d(spec.channels, 64, 11, stride=4, padding=2)
    )
    layers = list(network.get_submodule("features").children())
    network.features = nn.Sequential(stem, *layers[1:])
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier = nn.Linear(256, spec.num_classes)
    return network


def _vit(spec: ImageSpec) -> nn.Module:
    """Return a vision transformer of six layers, width 192, on about 8 x 8 patches.

    An image whose side has no suitable divisor gets a rim of the mean (zero, once normalised).
    """
    from torchvision.models import VisionTransformer

    patch, rim = patches(spec.size)
    network: nn.Module = VisionTransformer(
        image_size=spec.size + rim,
        patch_size=patch,
        num_layers=6,
        num_heads=3,
        hidden_dim=192,
        mlp_dim=384,
        num_classes=spec.num_classes,
    )
    network.conv_proj = nn.Conv2d(spec.channels, 192, patch, stride=patch)
    if not rim:
        return network
    pad = nn.ZeroPad2d((rim // 2, rim - rim // 2) * 2)
    return nn.Sequential(OrderedDict(pad=pad, vit=network))


def patches(size: int) -> tuple[int, int]:
    """Return the side of a patch, and by how much ``size`` grows to be a multiple of it.

    The divisor nearest to an eighth (28 -> 4, 64 -> 8), which needs no rim; where it would make
    more than ``MOST_PATCHES`` a side, the whole number nearest to an eighth (53 -> 7 and 3).
    Attention costs the fourth power of their number: 53 patches of one pixel took 100 s a step.
    """
    divisors = [d for d in range(1, size + 1) if size % d == 0]
    patch = min(divisors, key=lambda d: abs(d - size / 8))
    if size // patch > MOST_PATCHES:
        patch = round(size / 8)
    return patch, -size % patch


NETWORKS: Mapping[str, Callable[[ImageSpec], nn.Module]] = {
    "resnet18": partial(_resnet, "resnet18"),
    "resnet34": partial(_resnet, "resnet34"),
    "vgg11": _vgg11,
    "alexnet": _alexnet,
    "vit": _vit,
}
"""What takes normalised images, by name; a line here adds one."""
GLOBAL_MODELS = ("convnet", *NETWORKS)
"""Architectures that the server can train beside the surrogate."""


@torch.no_grad()
def initialise(module: nn.Module, *, rng: torch.Generator) -> None:
    """Draw all weights anew from ``rng``, as torch's own defaults would.

    Convolutions and linear layers are Kaiming-uniform, normalisations the identity,
    attention Xavier-uniform, position embeddings normal (0.02). The draws depend
    neither on the device nor on the precision of ``module``.

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
        elif isinstance(part, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
            part.reset_parameters()
        elif isinstance(part, nn.MultiheadAttention):
            weight = part.in_proj_weight
            _uniform(weight, math.sqrt(6 / sum(weight.shape)), rng)
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
                    f"initialise knows no rule for parameter {name!r} of "
                    f"{type(part).__name__}; add one"
                )


def _uniform(p: Tensor, bound: float, rng: torch.Generator) -> None:
    p.copy_((2 * torch.rand(p.shape, generator=rng) - 1) * bound)
