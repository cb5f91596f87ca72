"""Every setting of a run: the sections put together, and read from what Flower hands over.

Flower hands both apps one flat mapping of dotted kebab-case keys (``distill.latent-lr``).
``RunConfig.from_run_config`` turns it into a tree of frozen dataclasses, once, or raises one
sentence with the key, the value, what was expected and what to do. Each section is declared beside
what it configures (``core.settings.setting``); below the apps only sections travel.

A value of ``"auto"`` means "as the recipe says": a setting's default, or under ``recipe = "paper"``
what it declares for that. This module knows no tensor, no data set and no Flower.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal, TypeVar

from feddgm_flwr import methods
from feddgm_flwr.core.distillation.settings import DistillConfig
from feddgm_flwr.core.learning import GlobalModelConfig, StartConfig, UnionConfig
from feddgm_flwr.core.local import ClientConfig
from feddgm_flwr.core.models import SurrogateConfig
from feddgm_flwr.core.private import PrivacyConfig
from feddgm_flwr.core.settings import (
    About,
    Scalar,
    Settings,
    Words,
    about_of,
    hints_of,
    key_of,
    setting,
    typed,
)
from feddgm_flwr.data.settings import DataConfig
from feddgm_flwr.federation.settings import RoundsConfig, ServerConfig, WatchConfig
from feddgm_flwr.priors.settings import PriorConfig

AUTO = "auto"
S = TypeVar("S", bound=Settings)

RENAMED = {
    "strategy": "method",
    "distill.device": "server.device",
    "global-model.prior-epochs": "start.global-model-epochs",
    "server.start": "start.weights",
    "server.prior-epochs": "start.epochs",
    "server.prior-lr": "start.lr",
    "server.generator-only": "start.control",
    "server.fraction-train": "rounds.fraction-train",
    "server.min-clients": "rounds.min-clients",
    "server.node-wait-s": "rounds.node-wait-s",
    "server.round-timeout-s": "rounds.timeout-s",
    "server.federated-evaluation": "rounds.federated-evaluation",
    "baseline.proximal-mu": "fedprox.mu",
    "baseline.server-lr": "fedopt.lr",
    "baseline.server-momentum": "fedopt.momentum",
    "baseline.adaptivity": "fedopt.tau",
    "baseline.trim": "robust.trim",
    "baseline.malicious": "robust.malicious",
    **{
        f"generator.{name}": f"prior.{name}"
        for name in ("kind", "path", "subfolder", "feature-block", "image-scale", "chunk")
    },
    **{
        f"server.{name}": f"union.{name}"
        for name in (
            *("surrogate-update", "epochs", "lr", "momentum", "weight-decay", "batch-size"),
            *("augment", "weight-by-examples", "prior-images-per-class"),
        )
    },
}
"""Keys of version 0.1.0 -> the present ones."""


@dataclass(frozen=True)
class Deleted:
    """A key that is gone: what it was, and the value under which a run was as runs are now."""

    was: str
    off: Scalar


DELETED: Mapping[str, Deleted] = {
    "distill.replay-rounds": Deleted("images of earlier rounds in the union", off=1),
    "union.replay-rounds": Deleted("images of earlier rounds in the union", off=1),
    "distill.distance": Deleted("the angle as a distance", off="endpoint"),
    "distill.candidates": Deleted("choosing among the prior's samples", off=1),
    "client.checkpoints": Deleted("waypoints on a client's way", off=0),
}
"""Keys of what was tried, was worth nothing (docs/results.md) and is gone."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(Settings):
    """What concerns a run as a whole."""

    recipe: Literal["feddgm", "paper"] = setting(
        "feddgm", "What `auto` stands for: our measured best, or the authors' settings."
    )
    method: str = setting(
        "feddgm",
        "The federated method: ours, or another on the same clients and data.",
        words=Words(fit=lambda name: name in methods.names(), expected=f"one of {methods.names()}"),
    )
    seed: int = setting(
        0, "Everything random is derived from it: partitions, weights, batches, latents.", ge=0
    )
    num_server_rounds: int = setting(
        5, "Rounds in all, those before a resume counted in; a resumed run may have more.", ge=1
    )
    out_dir: str = setting(
        "",
        'Absolute folder of the run; "" is a new folder under `~/feddgm-runs`.',
        may_differ=True,
    )
    resume: bool = setting(
        False,
        "Go on from the checkpoint in `out-dir`, bit for bit; noise for privacy is drawn anew.",
        may_differ=True,
    )
    data: DataConfig = field(default_factory=DataConfig)
    client: ClientConfig = field(default_factory=ClientConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    surrogate: SurrogateConfig = field(default_factory=SurrogateConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    start: StartConfig = field(default_factory=StartConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    union: UnionConfig = field(default_factory=UnionConfig)
    global_model: GlobalModelConfig = field(default_factory=GlobalModelConfig)
    rounds: RoundsConfig = field(default_factory=RoundsConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    of_methods: Mapping[type[Settings], Settings] = field(
        default_factory=lambda: {section: section() for section in methods.sections()}
    )
    """What each method's own section says, for every section of a method."""

    def __post_init__(self) -> None:
        """Check what a method and the surrogate, the mean or the loss cannot have together."""
        super().__post_init__()
        narrow = self.surrogate.narrow_widths
        if narrow and not methods.mixes_widths(self.method):
            raise ValueError(
                f"surrogate.narrow-widths = {narrow!r} needs method = 'feddgm', got "
                f"{self.method!r}, which averages parameters of one shape; change one of the two "
                "with -c"
            )
        aggregate = self.server.aggregate
        if aggregate != ServerConfig.aggregate and not methods.takes_mean(self.method):
            able = ", ".join(filter(methods.takes_mean, methods.names()))
            raise ValueError(
                f"server.aggregate = {aggregate!r} needs a method whose server takes a mean of the "
                f"replies ({able}), got {self.method!r}; change one of the two with -c, or take "
                "method = 'fedmedian', 'fedtrimmedavg' or 'krum'"
            )
        loss = self.client.loss
        if loss != ClientConfig.loss and methods.has_own_loss(self.method):
            raise ValueError(
                f"client.loss must be {ClientConfig.loss!r} under method = {self.method!r}, whose "
                f"clients have a loss of its own, got {loss!r}; change one of the two with -c"
            )
        if self.union.examine and self.only_means:
            raise ValueError(
                "union.examine must be false under distill.of = 'aggregate', where no single reply "
                "is looked at, got True; change one of the two with -c"
            )
        if self.privacy.on:
            self._check_private()

    @property
    def may_leave_no_gradient(self) -> bool:
        """Whether a client of one class may end where it began, by the loss that it descends."""
        return self.client.loss == "balanced-softmax" or methods.may_stay(self.method)

    def _check_private(self) -> None:
        """Check that clients send nothing but what noise covers."""
        noise = f"privacy.noise-multiplier = {self.privacy.noise_multiplier:g}"
        if not methods.trains_plainly(self.method):
            able = ", ".join(filter(methods.trains_plainly, methods.names()))
            raise ValueError(
                f"{noise} needs a method whose clients train plainly and send parameters alone "
                f"({able}), got {self.method!r}; change one of the two with -c"
            )
        bare = {
            "client.share-label-counts": self.client.share_label_counts,
            "rounds.federated-evaluation": self.rounds.federated_evaluation,
        }
        for key in (key for key, value in bare.items() if value):
            raise ValueError(
                f"{key} must be false under {noise}, which covers the parameters that clients "
                "send and nothing beside, got True; change one of the two with -c"
            )
        if self.client.compile:
            raise ValueError(
                f"client.compile must be false under {noise}, whose steps torch does not compile "
                "here, got True; change one of the two with -c"
            )
        if self.client.loss != ClientConfig.loss:
            raise ValueError(
                f"client.loss must be {ClientConfig.loss!r} under {noise}, as the numbers of a "
                f"client's labels have no noise, got {self.client.loss!r}; change one of the two "
                "with -c"
            )

    @property
    def only_means(self) -> bool:
        """Whether a reply counts as a part of a mean alone, so that one by itself does not."""
        return self.makes_images and self.distill.of == "aggregate"

    @property
    def starts_from_prior(self) -> bool:
        """Whether the first models are trained on samples of the prior."""
        if self.start.weights == "method":
            return self.makes_images
        return self.start.weights == "prior"

    @property
    def needs_prior(self) -> bool:
        """Whether the method or the start samples the prior."""
        own = methods.registered(self.method).samples_prior(self)
        return self.makes_images or self.starts_from_prior or bool(own)

    @property
    def makes_images(self) -> bool:
        """Whether the method makes images, for which it needs the prior."""
        return methods.makes_images(self.method)

    @property
    def shows_images(self) -> bool:
        """Whether the method's rounds report images."""
        return methods.shows_images(self.method)

    def of_method(self, section: type[S]) -> S:
        """Return what a method's own section says."""
        own = self.of_methods[section]
        assert isinstance(own, section)
        return own

    @classmethod
    def from_run_config(cls, flat: Mapping[str, Scalar]) -> "RunConfig":
        """Build the tree from Flower's flat run config.

        Raises
        ------
        ValueError
            An unknown key, a value out of range, or one that nothing would read.
        TypeError
            A value of the wrong type.
        """
        check_known(flat)
        # Of a device "auto" is also the default, so it may be left out like any other.
        said = {key: value for key, value in flat.items() if value != AUTO}
        values = _by_section(said)
        if values[RunConfig].get("recipe") == "paper":
            values = _by_section({**recipe_values(), **said})
        own = {s: s(**values[s]) for s in methods.sections()}
        parts: dict[str, Any] = {_field_of(s): s(**values[s]) for s in STATIC}
        config = cls(**values[RunConfig], **parts, of_methods=own)
        config.check_read(said)
        return config

    def flat(self) -> dict[str, Scalar]:
        """Return the resolved dotted keys and values, as a run folder records them."""
        return {
            key: getattr(self._tree(declared.section), declared.name)
            for key, declared in settings().items()
        }

    def check_read(self, said: Mapping[str, Scalar]) -> None:
        """Raise where the user said what another setting leaves unread.

        The recipe's value may be said: a run folder's record of every setting is a run config too.

        Raises
        ------
        ValueError
            Such as ``prior.path`` under ``prior.kind = "pixel"``.
        """
        flat, known, defaults = self.flat(), settings(), self._defaults()
        for key in said:
            declared, value = known[key], flat[key]
            if value == defaults[key]:
                continue
            for switch, allowed in declared.only.items():
                if flat[switch] not in allowed:
                    raise ValueError(
                        f"{key} = {value!r} is read only under {switch} = "
                        f"{' or '.join(map(repr, allowed))}, got {switch} = {flat[switch]!r}; "
                        "change one of the two with -c"
                    )

    def unread(self) -> tuple[str, ...]:
        """Return the keys that differ from their defaults and that the method does not read.

        Unlike what ``check_read`` refuses, they may stand in a file that serves several methods.
        """
        flat, defaults = self.flat(), self._defaults()
        return tuple(key for key in self.idle() if flat[key] != defaults[key])

    def idle(self) -> tuple[str, ...]:
        """Return the keys of all sections that the method does not read."""
        method = methods.registered(self.method)
        idle = set(methods.sections()) - set(method.settings)
        if not self.makes_images:
            idle |= {DistillConfig, UnionConfig}
            idle |= set() if self.needs_prior else {PriorConfig, StartConfig, GlobalModelConfig}
        read = {*method.read, *(READ_BY_START if self.starts_from_prior else ())}
        unread = {*method.unread, *(() if self.shows_images else JUDGING)}
        return tuple(
            key
            for key, declared in settings().items()
            if (declared.section in idle and key not in read) or key in unread
        )

    def _defaults(self) -> dict[str, Scalar]:
        """Return every setting's value under the recipe, where nothing else is said."""
        ours = {key: declared.default for key, declared in settings().items()}
        return {**ours, **recipe_values()} if self.recipe == "paper" else ours

    def _tree(self, section: type[Settings]) -> Settings:
        if section is RunConfig:
            return self
        tree: Settings = self.of_methods.get(section) or getattr(self, _field_of(section))
        return tree


def said_keys(flat: Mapping[str, Scalar]) -> tuple[str, ...]:
    """Return the keys whose values are the user's own word."""
    return tuple(key for key, value in flat.items() if value != AUTO)


JUDGING = (f"{ServerConfig.section}.fidelity-data",)
"""What is read where rounds report images."""
READ_BY_START = tuple(
    f"{UnionConfig.section}.{name}"
    for name in ("momentum", "weight-decay", "batch-size", "augment", "prior-images-per-class")
)
"""How the surrogate learns from the prior's samples at the start, under methods without a union."""
STATIC: tuple[type[Settings], ...] = tuple(
    hint
    for hint in hints_of(RunConfig).values()
    if isinstance(hint, type) and issubclass(hint, Settings)
)
"""The sections that are fields of ``RunConfig``."""


@dataclass(frozen=True)
class Declared:
    """A setting as it was declared: the field ``name`` of ``section``, and its type."""

    section: type[Settings]
    name: str
    hint: Any
    default: Scalar
    about: About

    @property
    def only(self) -> dict[str, tuple[Scalar, ...]]:
        """The same as ``about.only``, by dotted keys."""
        return {key_of(self.section, name): values for name, values in self.about.only.items()}


def sections() -> tuple[type[Settings], ...]:
    """Return every section, the run's own first, those of methods last."""
    return (RunConfig, *STATIC, *methods.sections())


# A device reads its config for each message, and the declarations stay as they are.
@cache
def settings() -> Mapping[str, Declared]:
    """Return every setting by its dotted key, section by section."""
    return {
        # A class keeps the default of a field under the field's name.
        key_of(section, name): Declared(
            section, name, hints_of(section)[name], getattr(section, name), about
        )
        for section in sections()
        for name, about in about_of(section).items()
    }


@cache
def recipe_values() -> Mapping[str, Scalar]:
    """Return what ``recipe = "paper"`` sets."""
    return {k: d.about.paper for k, d in settings().items() if d.about.paper is not None}


@cache
def may_differ() -> frozenset[str]:
    """Return the keys that a resumed run may change."""
    return frozenset(key for key, declared in settings().items() if declared.about.may_differ)


def check_known(flat: Mapping[str, Scalar]) -> None:
    """Raise unless every key of ``flat`` is one.

    A renamed or misspelt key is told the right one, a deleted one why it is gone.

    Raises
    ------
    ValueError
        There are unknown keys.
    """
    known = settings()
    unknown = sorted(set(flat) - set(known))
    if not unknown:
        return
    told = []
    for key in unknown:
        if key in DELETED:
            told.append(f"{key} is gone ({DELETED[key].was} was worth nothing; leave it out)")
        elif key in RENAMED:
            told.append(f"{key} is now called {RENAMED[key]}")
        else:
            near = get_close_matches(key, known, n=1)
            told.append(f"{key} may mean {near[0]}" if near else key)
    raise ValueError(
        f"unknown run-config keys: {', '.join(told)}; docs/config.md lists the known ones"
    )


def _by_section(flat: Mapping[str, Scalar]) -> dict[type[Settings], dict[str, Any]]:
    """Return each section's fields, typed, as far as ``flat`` says them."""
    values: dict[type[Settings], dict[str, Any]] = {section: {} for section in sections()}
    for key, value in flat.items():
        declared = settings()[key]
        values[declared.section][declared.name] = typed(key, value, declared.hint)
    return values


def _field_of(section: type[Settings]) -> str:
    return section.section.replace("-", "_")
