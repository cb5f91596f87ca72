"""What a federated method is: a half on the server and a half on each device.

In a round the server sends each client the surrogate and what the method adds (``down``); the
client trains by the method's rule (``rule``) and replies with its parameters and what the method
adds (``up``); the server makes the next state of the replies (``advance``). What a method keeps
between rounds, for itself or for a client, stands in ``ServerState.memory``: a checkpoint holds it,
and a device may be restarted or replaced without harm, as it keeps nothing. Knows no Flower.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from feddgm_flwr import methods
from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.images import ImageSet
from feddgm_flwr.core.local import Task, Walk, Walker, walk
from feddgm_flwr.core.settings import Settings
from feddgm_flwr.core.state import ClientUpdate, Extra, RoundReport, ServerState
from feddgm_flwr.core.training import PLAIN, Rule
from feddgm_flwr.events import Emit

if TYPE_CHECKING:
    from feddgm_flwr.build import Tools


@runtime_checkable
class Advance(Protocol):
    """Makes the next state of a round's accepted replies.

    There is at least one, and they come sorted by partition id.
    """

    def __call__(
        self, state: ServerState, updates: Sequence[ClientUpdate], population: int
    ) -> tuple[ServerState, RoundReport | None]:
        """Return the state after one more round, and what was distilled, if so.

        ``population`` is how many clients there are, asked or not.
        """
        ...


def _nothing_down(state: ServerState, partition_id: int) -> Extra:
    return Extra()


def _nothing_up(task: Task, walk: Walk, data: ImageSet) -> Extra:
    return Extra()


def _plain(task: Task, data: ImageSet) -> Rule:
    return PLAIN


def _as_it_is(state: ServerState) -> ServerState:
    return state


def _unasked(extra: Extra, num_examples: int) -> str:
    return "" if extra == Extra() else "it sends more than this method asks for"


@dataclass(frozen=True, kw_only=True)
class ClientHalf:
    """What a device does.

    Attributes
    ----------
    rule
        What local training follows, given what was sent and the device's own images.
    up
        What goes back beside the parameters, after training on those images.
    walk
        What it does with its images: it trains the surrogate, unless a method says else.
    """

    rule: Callable[[Task, ImageSet], Rule] = _plain
    up: Callable[[Task, Walk, ImageSet], Extra] = _nothing_up
    walk: Walker = walk

    @property
    def trains_plainly(self) -> bool:
        """Whether a device does as it would under FedAvg, whatever it sends beside."""
        return self.walk is walk and self.rule is _plain


@dataclass(frozen=True, kw_only=True)
class ServerHalf:
    """What the server does.

    Attributes
    ----------
    down
        What goes to a client (by partition id) beside the surrogate.
    shown
        The state as it is scored and saved for use, where that is not what clients are sent.
    wrong
        Why the addition of a reply of so many examples cannot be believed, or "".
    takes_params
        Whether a reply holds the trained surrogate; where not, its addition is all that it holds.
    close
        Releases what the half holds.
    """

    advance: Advance
    down: Callable[[ServerState, int], Extra] = _nothing_down
    shown: Callable[[ServerState], ServerState] = _as_it_is
    wrong: Callable[[Extra, int], str] = _unasked
    takes_params: bool = True
    close: Callable[[], None] = lambda: None


def _same_for_all(config: RunConfig) -> ClientHalf:
    return ClientHalf()


def _none(config: RunConfig) -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method, and how its halves are built from a run's config.

    Attributes
    ----------
    server, client
        Builders; a device calls the second alone.
    settings
        Sections of the configuration that are the method's own.
    makes_images
        Whether it needs a prior and makes images, from which larger models can learn.
    shows_images
        Whether its rounds report images, whoever made them, that can be shown and judged.
    mixes_widths
        Whether its clients may train surrogates of several widths, over which there is no mean of
        parameters.
    takes_mean
        Whether its server takes a mean of the replies, which ``server.aggregate`` may replace.
    own_loss
        Whether its clients descend a loss of its own, in whose place ``client.loss`` cannot be.
    may_stay
        Whether that loss leaves a client of one class no gradient, so that it ends where it began.
    unread, read
        Keys of the sections that all methods share which this one does not read, and those that it
        reads of sections which are for others.
    samples_prior
        Whether it needs a prior though it makes no images, under a run's config.
    """

    server: "Callable[[RunConfig, Tools, Emit], ServerHalf]"
    client: Callable[[RunConfig], ClientHalf] = _same_for_all
    settings: tuple[type[Settings], ...] = ()
    makes_images: bool = False
    shows_images: bool = False
    mixes_widths: bool = False
    takes_mean: bool = False
    own_loss: bool = False
    may_stay: bool = False
    unread: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    samples_prior: Callable[[RunConfig], bool] = _none

    @property
    def trains_plainly(self) -> bool:
        """Whether its clients do as under FedAvg, and send no more."""
        return self.client is _same_for_all


def method_of(name: str) -> Method:
    """Return the method called ``name``; the config has checked that there is one."""
    method = methods.registered(name)
    assert isinstance(method, Method)
    return method
