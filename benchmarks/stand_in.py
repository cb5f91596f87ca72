"""A surrogate of any size, for what needs neither data nor a client. No claim."""

from feddgm_flwr.core.images import ImageSpec
from feddgm_flwr.core.models import ConvNet, SurrogateConfig, build_surrogate, initialise
from feddgm_flwr.core.seeding import derive


def stand_in(
    channels: int, side: int, *, width: int, depth: int = 3, classes: int = 10
) -> tuple[ImageSpec, ConvNet]:
    """Return images' measures and a fresh surrogate for them."""
    names = tuple(map(str, range(classes)))
    spec = ImageSpec(channels, side, names, (0.5,) * channels, (0.25,) * channels)
    surrogate = build_surrogate(SurrogateConfig(depth=depth, width=width), spec)
    initialise(surrogate, rng=derive(0, "surrogate"))
    return spec, surrogate
