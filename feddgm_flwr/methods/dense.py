"""DENSE (Zhang et al., arXiv 2112.12371): a generator taught by the replies teaches the average.

The server averages; a generator learns to make images that the replies take for drawn labels and
about which the student disagrees with them; the student then learns what the replies say of them::

    G:  CE(A(x), y) - lambda 1[argmax A(x) != argmax f(x)] KL(A(x) || f(x)),    x = G(z, y)
    f:  KL(A(x) || f(x))

A is the plain mean of the replies' logits. The paper's term of batch-norm statistics is left out,
since the surrogate has no batch norm. The paper makes one round; here the generator is kept from
round to round, as its steps are what costs time, and the replies of two rounds are much alike.
``core.datafree`` says in what the common part differs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.datafree import DataFreeConfig, Tactics, build_generator, teach
from feddgm_flwr.core.ensemble import Ensemble, divergence
from feddgm_flwr.core.models import initialise
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.state import ClientUpdate, ServerState
from feddgm_flwr.events import Emit
from feddgm_flwr.methods.halves import Method, ServerHalf

if TYPE_CHECKING:
    from feddgm_flwr.build import Tools

GENERATOR = "generator"


@dataclass(frozen=True, kw_only=True)
class DenseConfig(DataFreeConfig):
    """DENSE."""

    section: ClassVar[str] = "dense"


def generator_loss(
    told: Float[Tensor, "n k"],
    heard: Float[Tensor, "n k"],
    labels: Int[Tensor, " n"],
    *,
    adversarial: float,
) -> Float[Tensor, ""]:
    """Return the generator's loss, given the replies' logits, the student's and the labels."""
    differs = told.argmax(1) != heard.argmax(1)
    away = (differs * divergence(told, heard)).mean()
    return cross_entropy(told, labels) - adversarial * away


def generator_of(state: ServerState, tools: "Tools", width: int, seed: int) -> nn.Module:
    """Return the generator that ``state`` remembers; a fresh one at first."""
    generator = build_generator(tools.spec, width)
    if GENERATOR in state.memory:
        generator.load_state_dict(state.memory[GENERATOR])
    else:
        initialise(generator, rng=derive(seed, "generator"))
    return generator.to(tools.device)


def server_half(
    config: RunConfig, tools: "Tools", emit: Emit, own: DataFreeConfig, tactics: Tactics
) -> ServerHalf:
    """Return the server's half of a method that teaches without data, by its ``own`` settings."""
    from feddgm_flwr.core.learning import copied
    from feddgm_flwr.core.telling import phase

    module, device = tools.learners.surrogate.module, tools.device

    def advance(
        state: ServerState, updates: Sequence[ClientUpdate], population: int
    ) -> tuple[ServerState, None]:
        number, replies = state.server_round + 1, [u.params for u in updates]
        generator = generator_of(state, tools, own.generator_width, config.seed)
        module.to(device)
        with phase("learn", number, emit):
            taught = teach(
                module,
                config.server.mean.of(updates, state.surrogate),
                Ensemble.of(module, replies, device),
                generator,
                tactics,
                own,
                num_classes=tools.spec.num_classes,
                rng=derive(config.seed, "datafree", number),
            )
        module.to("cpu")
        memory = {GENERATOR: copied(generator.state_dict())}
        return replace(state, server_round=number, surrogate=copied(taught), memory=memory), None

    return ServerHalf(advance=advance)


def _server(config: RunConfig, tools: "Tools", emit: Emit) -> ServerHalf:
    own = config.of_method(DenseConfig)

    def loss(told: Tensor, heard: Tensor, labels: Tensor) -> Tensor:
        return generator_loss(told, heard, labels, adversarial=own.adversarial)

    return server_half(config, tools, emit, own, Tactics(loss))


METHODS = {"dense": Method(server=_server, settings=(DenseConfig,), takes_mean=True)}
