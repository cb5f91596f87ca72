"""FedDF (Lin et al., arXiv 2006.07242): the replies teach their mean on images without labels.

The server averages, then makes N steps of Adam, at a rate that falls as a cosine, towards the mean
of the replies' logits (AVGLOGITS)::

    x_0 = sum_k n_k x_k / sum_k n_k
    x_j = x_{j-1} - eta d/dx KL( softmax(1/|S| sum_k f(x_k, d_j)) || softmax(f(x_{j-1}, d_j)) )

Unlike the paper there is no early stop, which would need labelled images on the server. Where none
are public, samples of the run's prior stand in, as the paper's generator does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.ensemble import Ensemble, answers, listen
from feddgm_flwr.core.params import Params, load_params, params_of
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.settings import Settings, Words, setting
from feddgm_flwr.core.state import ClientUpdate, ServerState
from feddgm_flwr.events import Emit
from feddgm_flwr.methods.halves import Method, ServerHalf

if TYPE_CHECKING:
    from feddgm_flwr.build import Tools

PRIOR = "prior"


@dataclass(frozen=True, kw_only=True)
class FedDFConfig(Settings):
    """FedDF."""

    section: ClassVar[str] = "feddf"

    images: str = setting(
        PRIOR,
        "What the replies teach on: `prior` samples the run's prior anew each round, else the "
        "absolute path, on the server, of a folder of pictures or of an `.npz` that holds "
        "`train_images`; labels are never read.",
        words=Words(
            fit=lambda value: value == PRIOR or Path(value).is_absolute(),
            expected=f"'{PRIOR}' or an absolute path",
        ),
    )
    count: int = setting(1000, "Images a round, at most as many as there are.", ge=1)
    steps: int = setting(200, "Steps of the student a round.", ge=0)
    lr: float = setting(0.001, "Adam's learning rate at first; it falls to 0 as a cosine.", gt=0)
    batch_size: int = setting(64, "Images a step.", ge=1)


def distil(
    student: nn.Module,
    start: Params,
    ensemble: Ensemble,
    images: Float[Tensor, "n c h w"],
    config: FedDFConfig,
    *,
    rng: torch.Generator,
) -> Params:
    """Return ``start`` after learning from ``ensemble`` on ``images``.

    Parameters
    ----------
    student
        The architecture, on the device of ``images``; its weights are scratch space.
    """
    load_params(student, start)
    told = answers(ensemble, images, batch_size=config.batch_size)
    optimizer = torch.optim.Adam(student.parameters(), lr=config.lr)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, config.steps))
    order: list[Tensor] = []
    for _ in range(config.steps):
        if not order:
            order = list(torch.split(torch.randperm(len(images), generator=rng), config.batch_size))
        chosen = order.pop(0).to(images.device)
        listen(student, images[chosen], told[chosen], optimizer)
        falling.step()
    return params_of(student)


def public_images(path: str, tools: "Tools") -> Callable[[torch.Generator, int], Tensor]:
    """Return what draws so many of the pictures at ``path``.

    Raises
    ------
    ValueError
        They cannot be read.
    """
    from feddgm_flwr.data.own import Source, Words, read_unlabelled

    key = "feddf.images"
    words = Words(key=key, classes="", channels="convert them or name other pictures", labels="")
    spec = tools.spec
    pixels = torch.from_numpy(
        read_unlabelled(Source(Path(path), (), spec.channels, spec.size, words))
    )

    def drawn(rng: torch.Generator, count: int) -> Tensor:
        return pixels[torch.randperm(len(pixels), generator=rng)[:count]].float() / 255

    return drawn


def _images(own: FedDFConfig, seed: int, tools: "Tools") -> Callable[[int], Tensor]:
    """Return what makes a round's images."""
    if own.images != PRIOR:
        public = public_images(own.images, tools)
        return lambda number: public(derive(seed, "feddf-images", number), own.count)
    from feddgm_flwr.core.start import prior_set

    bench = tools.bench
    assert bench is not None
    each = -(-own.count // bench.num_classes)
    return lambda number: prior_set(bench, number, each, seed=seed).images


def _server(config: RunConfig, tools: "Tools", emit: Emit) -> ServerHalf:
    from feddgm_flwr.core.learning import copied
    from feddgm_flwr.core.telling import phase

    own, module, device = (
        config.of_method(FedDFConfig),
        tools.learners.surrogate.module,
        tools.device,
    )
    images_of = _images(own, config.seed, tools)

    def advance(
        state: ServerState, updates: Sequence[ClientUpdate], population: int
    ) -> tuple[ServerState, None]:
        number, replies = state.server_round + 1, [u.params for u in updates]
        mean = config.server.mean.of(updates, state.surrogate)
        rng = derive(config.seed, "feddf-steps", number)
        module.to(device)
        with phase("learn", number, emit):
            ensemble = Ensemble.of(module, replies, device)
            taught = distil(module, mean, ensemble, images_of(number).to(device), own, rng=rng)
        module.to("cpu")
        return replace(state, server_round=number, surrogate=copied(taught)), None

    return ServerHalf(advance=advance)


METHODS = {
    "feddf": Method(
        server=_server,
        settings=(FedDFConfig,),
        takes_mean=True,
        samples_prior=lambda config: config.of_method(FedDFConfig).images == PRIOR,
    )
}
