"""Privacy by figures: accuracy against epsilon, the mean alone, and what an audit finds out.

Claim: docs/privacy.md. Ten clients, Dirichlet(0.1). Of each client's images half are trained on
(members); the rest no client has: three fifths are the audit's non-members, two fifths its
population, from which reference models learn. So members and others are of the same kind, client by
client. Rows: FedDGM, the same where the mean alone is distilled, FedAvg from fresh weights and from
the models that the prior taught, noise on the clients at several strengths, and the control: what
the prior alone gives, which no client's image has touched. Accuracy is on the data set's test part.
A finished run is kept in ``--out``, and a second start goes on.

    python benchmarks/privacy.py --seeds 0 --rounds 5 --out FOLDER
    python benchmarks/privacy.py --preset digits --quick --seeds 0 1 --rounds 5 --out FOLDER
    python benchmarks/privacy.py --preset digits --quick --out FOLDER --report-only

How long: benchmarks/README.md.
"""

import argparse
import json
import logging
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comparing.cases import file_of, refuse_to_overwrite, refuse_to_report_nothing
from comparing.presets import CPU, PRESETS, Said, division
from comparing.store import seeds_in
from hostile import DIGITS, QUICK
from inprocess import Meddler, Round, own_images, quiet, rounds_of, scorer
from torch import nn

from feddgm_flwr.auditing.membership import Interval, attacked, half_of
from feddgm_flwr.auditing.nearness import nearness
from feddgm_flwr.auditing.subject import reference
from feddgm_flwr.build import build_learners, build_tools, first_state
from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.accounting import Account, epsilon_of
from feddgm_flwr.core.images import ImageSet
from feddgm_flwr.core.params import Params, load_params
from feddgm_flwr.core.seeding import derive, derive_seed
from feddgm_flwr.core.start import prior_set
from feddgm_flwr.core.state import ServerState
from feddgm_flwr.data.datasets import load, spec_of
from feddgm_flwr.files import write_atomically

logger = logging.getLogger(__name__)

CLIENTS = 10
REFERENCES = 8
KNOWN = {"mnist5k": PRESETS["mnist5k"], "digits": DIGITS}
NOISES = (0.5, 1.0, 2.0, 4.0)
"""Noise multipliers."""

OURS: Said = {"method": "feddgm", "start.weights": "prior"}
MEAN: Said = {**OURS, "distill.of": "aggregate"}
AVERAGE: Said = {"method": "fedavg", "start.weights": "prior"}


def noisy(said: Said, noise: float) -> Said:
    """Return ``said`` under noise: larger batches, which drown less in it; nothing is tuned."""
    return {
        **said,
        "privacy.noise-multiplier": noise,
        "privacy.clip-norm": 0.3,
        "client.batch-size": 128,
        "client.lr": 0.3,
    }


CONTROL = "the prior alone (control)"
ROWS: dict[str, Said] = {
    CONTROL: {**AVERAGE, "start.control": True},
    "feddgm": OURS,
    "feddgm, the mean alone": MEAN,
    "feddgm, the mean alone, 10 images a class": {**MEAN, "distill.images-per-class": 10},
    "fedavg, fresh weights": {"method": "fedavg", "start.weights": "random", "client.lr": 0.1},
    "fedavg, the prior's start": AVERAGE,
    **{f"fedavg, the prior's start, noise {z:g}": noisy(AVERAGE, z) for z in NOISES},
    **{f"feddgm, the mean alone, noise {z:g}": noisy(MEAN, z) for z in NOISES},
    "feddgm, noise 1": noisy(OURS, 1.0),
}
"""Label -> what its config is told."""


def parted(data: ImageSet, seed: int, partition_id: int) -> tuple[ImageSet, ImageSet, ImageSet]:
    """Return one client's images: those it trains on, the non-members, the population."""
    order = torch.randperm(len(data), generator=derive(seed, "audit-parts", partition_id))
    half = max(1, len(data) // 2)
    cut = half + round(0.6 * (len(data) - half))
    parts = (order[:half], order[half:cut], order[cut:])
    first, second, third = (ImageSet(data.images[i], data.labels[i]) for i in parts)
    return first, second, third


@dataclass(frozen=True)
class Halving(Meddler):
    """Lets each client train on its half of the images."""

    seed: int

    def images(self, partition_id: int, data: ImageSet) -> ImageSet:
        """Return what a client trains on."""
        return parted(data, self.seed, partition_id)[0]


@dataclass(frozen=True)
class Case:
    """One run."""

    row: str
    seed: int
    said: Said

    @property
    def config(self) -> RunConfig:
        """Its settings."""
        return RunConfig.from_run_config(self.said)

    @property
    def name(self) -> str:
        """Of its file."""
        plain = "".join(c if c.isalnum() else "-" for c in self.row)
        return f"{plain}_{self.seed}"


def joined(sets: Iterable[ImageSet]) -> ImageSet:
    """Return all images of ``sets``."""
    all_of = list(sets)
    return ImageSet(torch.cat([s.images for s in all_of]), torch.cat([s.labels for s in all_of]))


@cache
def real(name: str, division_of: tuple[tuple[str, Any], ...], seed: int) -> list[ImageSet]:
    """Return members, non-members and population of all clients together."""
    data = RunConfig.from_run_config({"data.name": name, **dict(division_of)}).data
    each = [parted(own_images(data, i, CLIENTS, seed), seed, i) for i in range(CLIENTS)]
    return [joined(part) for part in zip(*each, strict=True)]


@cache
def beginning(told: tuple[tuple[str, Any], ...], weights: str, seed: int) -> ServerState:
    """Return where a seed's runs begin: the same for all rows of one start."""
    said = {**dict(told), **AVERAGE, "start.weights": weights, "seed": seed}
    config = RunConfig.from_run_config(said)
    return first_state(config, build_tools(config, spec_of(config.data)), quiet)


@cache
def references(told: tuple[tuple[str, Any], ...], seed: int) -> list[nn.Module]:
    """Return reference models of a seed: the surrogate, plainly trained on half a population."""
    config = RunConfig.from_run_config({**dict(told), **AVERAGE, "seed": seed})
    start = beginning(told, "prior", seed).surrogate
    population = real(config.data.name, division_said(), seed)[2]
    made = []
    for index in range(REFERENCES):
        rng = derive(seed, "audit-reference", index)
        made.append(reference(config, start, half_of(population, rng), rng))
    return made


def division_said() -> tuple[tuple[str, Any], ...]:
    """Return how the images are divided, as a value."""
    return tuple(sorted(division(0.1, None).items()))


def audited(case: Case, last: Round, told: Said) -> dict[str, Any]:
    """Return what is found out about the clients' images from a run's models and images."""
    config = case.config
    members, non_members, _ = real(config.data.name, division_said(), case.seed)
    rng = np.random.default_rng(derive_seed(case.seed, "audit"))
    model = surrogate(config, last.state.surrogate)
    key = tuple(sorted(told.items()))
    found = attacked(model, references(key, case.seed), members, non_members, rng=rng)
    images = None if last.report is None else last.report.fresh.images
    if case.row == CONTROL:
        tools = build_tools(config, spec_of(config.data))
        assert tools.bench is not None
        images = prior_set(tools.bench, 1, 10, seed=case.seed, purpose="audit-control").images
    near = None
    if images is not None and len(images):
        near = asdict(nearness(images, members.images, non_members.images, rng=rng))
    return {
        "accuracy_on_members": found.accuracy[0],
        "accuracy_on_non_members": found.accuracy[1],
        "rmia": found.rmia.figures,
        "loss": found.loss.figures,
        "nearness": near,
    }


def surrogate(config: RunConfig, params: Params) -> nn.Module:
    """Return the surrogate with ``params``."""
    model = build_learners(config, spec_of(config.data)).surrogate.module
    load_params(model, params)
    return model.eval()


def spent(config: RunConfig, seed: int) -> list[float]:
    """Return each client's epsilon at the end; none where there is no noise."""
    if not config.privacy.on:
        return []
    sizes = [
        len(parted(own_images(config.data, i, CLIENTS, seed), seed, i)[0]) for i in range(CLIENTS)
    ]
    accounts = [Account(config.num_server_rounds, n, n) for n in sizes]
    return [epsilon_of(a, config.privacy, config.client) for a in accounts]


def run_case(case: Case, told: Said) -> dict[str, Any]:
    """Run and audit; what diverges is said."""
    torch.set_num_threads(1)
    config, began = case.config, time.perf_counter()
    start = beginning(tuple(sorted(told.items())), config.start.weights, case.seed)
    score = scorer(build_tools(config, spec_of(config.data)), load(config.data, "test"))
    last, diverged = Round(0, score(start).accuracy, start), ""
    accuracy = [last.accuracy["surrogate"]]
    rest = rounds_of(config, CLIENTS, after=start, meddler=Halving(case.seed))
    try:
        for done in () if case.row == CONTROL else rest:
            accuracy.append(done.accuracy["surrogate"])
            last = done
    except FloatingPointError as error:
        diverged = str(error)
    return {
        "row": case.row,
        "seed": case.seed,
        "said": case.said,
        "accuracy": accuracy,
        "diverged": diverged,
        "epsilon": spent(config, case.seed),
        "audit": audited(case, last, told),
        "seconds": time.perf_counter() - began,
    }


def cases(rows: Iterable[str], seeds: Iterable[int], told: Said) -> list[Case]:
    """Return all runs."""
    return [Case(row, s, {**told, **ROWS[row], "seed": s}) for s in seeds for row in rows]


def stored(out: Path, case: Case) -> dict[str, Any] | None:
    """Return a finished run of today's settings."""
    file = file_of(out, case)
    record = json.loads(file.read_text()) if file.is_file() else None
    return record if record is not None and record["said"] == case.said else None


def run_all(todo: Sequence[Case], out: Path, told: Said) -> None:
    """Run what is left, one after the other, and keep each run."""
    left = [case for case in todo if stored(out, case) is None]
    refuse_to_overwrite(out, left)
    logger.info("%d runs, %d done before", len(todo), len(todo) - len(left))
    began = time.perf_counter()
    for number, case in enumerate(left, 1):
        record = run_case(case, told)
        text = json.dumps(record, indent=1, allow_nan=False)
        write_atomically(file_of(out, case), text.encode())
        rest = (time.perf_counter() - began) / number * (len(left) - number)
        logger.info("%d of %d: %s: %.1f %% in %.0f s; about %.0f s left", number, len(left),
                    case.name, 100 * record["accuracy"][-1], record["seconds"], rest)  # fmt: skip


def accuracy_table(done: Sequence[dict[str, Any]]) -> str:
    """Return accuracy by round, and epsilon of the clients, in Markdown."""
    rounds = max(len(r["accuracy"]) for r in done)
    head = " | ".join(["start", *(f"{n}" for n in range(1, rounds))])
    lines = [
        f"| test accuracy, %, by round | {head} | epsilon, largest (median) client | seeds |",
        "|---" * (rounds + 3) + "|",
    ]
    for row in dict.fromkeys(r["row"] for r in done):
        own = [r for r in done if r["row"] == row and not r["diverged"]]
        cells = [
            f"{100 * statistics.mean(r['accuracy'][n] for r in own):.1f}"
            if own and all(len(r["accuracy"]) > n for r in own)
            else "-"
            for n in range(rounds)
        ]
        clients = [e for r in own for e in r["epsilon"]]
        most = f"{max(clients):.1f} ({statistics.median(clients):.1f})" if clients else "none"
        lines.append(f"| {row} | {' | '.join(cells)} | {most} | {len(own)} |")
    return "\n".join(lines)


def audit_table(done: Sequence[dict[str, Any]]) -> str:
    """Return what the audits found out, in Markdown, a line a run."""
    lines = [
        "| audit | seed | accuracy on members, others, % | RMIA: AUC | true positives at 1 % | "
        "at 0.1 % | distance ratio | p |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in done:
        a, near = r["audit"], r["audit"]["nearness"]
        rates = [a["rmia"][f"tpr_at_{rate}"] for rate in ("0.01", "0.001")]
        auc = a["rmia"]["auc"]
        cells = [
            r["row"],
            str(r["seed"]),
            f"{100 * a['accuracy_on_members']:.1f}, {100 * a['accuracy_on_non_members']:.1f}",
            f"{auc['value']:.3f} ({auc['low']:.3f} to {auc['high']:.3f})",
            *("-" if i is None else str(Interval(**i)) for i in rates),
            "-" if near is None else f"{near['ratio']:.3f}",
            "-" if near is None else f"{near['p_value']:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is left and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=KNOWN, default="mnist5k")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="fewer descents and epochs")
    parser.add_argument("--report-only", action="store_true")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    preset = KNOWN[chosen.preset].with_rounds(chosen.rounds)
    told = {
        **preset.common,
        "data.name": chosen.preset,
        "client.compile": False,  # which private training has not
        **division(0.1, None),
        **CPU,
        **(QUICK if chosen.quick else {}),
    }
    if not chosen.report_only:
        run_all(cases(chosen.rows, chosen.seeds, told), chosen.out, told)
    # All that is done, whichever of it was asked for this time: a table loses no row.
    known = cases(ROWS, sorted(seeds_in(chosen.out)), told)
    done = [r for r in (stored(chosen.out, case) for case in known) if r is not None]
    refuse_to_report_nothing(chosen.out, done)
    text = "\n\n".join([accuracy_table(done), audit_table(done)])
    write_atomically(chosen.out / "table.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
