"""A unit of work: one run of one row at one seed, and which runs a comparison or a grid asks for.

A unit is a value that a worker process can be handed. Its key is a hash of what it is told, its
clients and the fingerprint of its images; where a default has changed since it was run, ``store``
sees that by the resolved settings. Runs nothing.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from comparing.entries import Entry
from comparing.images import Prepared
from comparing.presets import DIVISIONS, Preset, Said
from feddgm_flwr.config import RunConfig, may_differ
from feddgm_flwr.core.images import ImageSpec
from feddgm_flwr.core.settings import Scalar
from feddgm_flwr.data.datasets import spec_of
from feddgm_flwr.priors import build_prior
from feddgm_flwr.priors.settings import PriorConfig

TUNING_SEED = 100


@dataclass(frozen=True)
class Unit:
    """One run.

    Attributes
    ----------
    tried
        The settings of the grid that it tries, or that tuning chose.
    said
        All that its config is told, ``tried`` among it.
    rounds
        Whether there are any; without, the start alone is scored.
    shares_training
        Whether clients' training is kept for other runs, and theirs found.
    device
        Where it is run, whatever ``said`` says, which stays its name; "" as that says.
    """

    label: str
    seed: int
    clients: int
    said: dict[str, Scalar]
    fingerprint: str
    tried: dict[str, Scalar] = field(default_factory=dict)
    rounds: bool = True
    shares_training: bool = False
    device: str = ""

    @property
    def config(self) -> RunConfig:
        """The run's config."""
        return RunConfig.from_run_config(self.said)

    @property
    def length(self) -> int:
        """Rounds that it runs."""
        return int(self.said["num-server-rounds"]) if self.rounds else 0

    @property
    def resolved(self) -> dict[str, Scalar]:
        """All settings that its method reads and that bear on the numbers."""
        config = self.config
        idle = {*config.idle(), *may_differ()}
        return {key: value for key, value in config.flat().items() if key not in idle}

    @property
    def prior(self) -> str:
        """Fingerprint of the prior that ``prior.path`` names; "" without, or if it is not here.

        Where it lies bears on no number, but what lies there does.
        """
        config = self.config
        if not config.needs_prior or not Path(config.prior.path or "-").exists():
            return ""
        return _fingerprint(config.prior, spec_of(config.data))

    @property
    def name(self) -> str:
        """A file's name: readable, then the key."""
        told = bearing(self.said)
        words = json.dumps([told, self.clients, self.fingerprint, self.rounds], sort_keys=True)
        slug = re.sub(r"[^a-z0-9]+", "-", self.label.lower()).strip("-")
        return f"{slug}-seed{self.seed}-{hashlib.sha256(words.encode()).hexdigest()[:12]}"


@cache
def _fingerprint(prior: PriorConfig, spec: ImageSpec) -> str:
    return build_prior(prior, spec).fingerprint


def bearing(said: Said) -> dict[str, Scalar]:
    """Return what of ``said`` bears on the numbers: not where images lie, say."""
    return {key: value for key, value in said.items() if key not in may_differ()}


def unit_of(
    preset: Preset,
    entry: Entry,
    images: Prepared,
    division: Said,
    seed: int,
    tried: Said,
) -> Unit:
    """Return one run of ``entry``; of what was ``tried`` a trial's own word takes the place."""
    tried = {key: value for key, value in tried.items() if key not in preset.trial}
    said = {**preset.common, **images.said, **division, **tried, **entry.wanted, "seed": seed}
    if said["data.partition"] == "iid":
        for key in DIVISIONS[1:]:
            said.pop(key, None)
    return Unit(
        label=entry.label,
        seed=seed,
        clients=entry.clients or preset.clients,
        said=said,
        fingerprint=images.fingerprint,
        tried=dict(tried),
        rounds=entry.rounds,
        shares_training=preset.shares_training,
    )


def comparison(
    preset: Preset,
    entries: Sequence[Entry],
    images: Prepared,
    division: Said,
    seeds: Iterable[int],
    tuned: Mapping[str, Said],
) -> list[Unit]:
    """Return the runs of a table, all rows of the first seed first.

    Parameters
    ----------
    tuned
        Label -> the settings that tuning chose.
    """
    return [
        unit_of(preset, e, images, division, seed, tuned.get(e.tuned_as or e.label, {}))
        for seed in seeds
        for e in entries
    ]


def grids(preset: Preset, entries: Sequence[Entry], images: Prepared, division: Said) -> list[Unit]:
    """Return the runs that tune ``entries``: one seed, half the rounds.

    Where a preset fixes how clients train, what is left of a row's grid is its other settings.
    """
    units = [
        tuning_unit(preset, entry, images, division, tried)
        for entry in entries
        for tried in map(preset.tunable, entry.grid)
    ]
    return list({unit.name: unit for unit in units}.values())


def tuning_unit(
    preset: Preset, entry: Entry, images: Prepared, division: Said, tried: Said
) -> Unit:
    """Return one run of a grid, or of what lies beside it."""
    short = preset.with_rounds(max(1, preset.rounds // 2))
    return unit_of(short, entry, images, division, TUNING_SEED, tried)


def still_so(stored: Mapping[str, Any], unit: Unit) -> bool:
    """Whether a stored run's settings are what ``unit`` would run with now.

    A setting that is newer than the stored run passes: its default is the old behaviour. So does a
    prior of which either side knows nothing.
    """
    then = stored["config"]
    same = all(then.get(key, value) == value for key, value in unit.resolved.items())
    return same and same_prior(stored.get("prior", ""), unit)


def same_prior(then: str, unit: Unit) -> bool:
    """Whether a run under the prior of fingerprint ``then`` is one of ``unit``'s."""
    return not then or unit.prior in ("", then)
