"""Two of ten clients hostile, in eight ways: accuracy lost against an honest run, by aggregate.

Claim: docs/robustness.md. Each row is a method and how it makes one of the replies; all rows begin
with the models that the prior taught (from random weights where it knows no class), have the same
clients, images, rounds and seeds, and the default limits on what a reply may claim, but for the row
"no limits". Beside them: the same two clients left out, which no defence can do better than; and
FedDGM whose replies are examined (``union.examine``). Also measured: whether the distillation of a
reply tells a liar. A finished run is kept in ``--out``, and a second start goes on where
the first was ended.

    python benchmarks/hostile.py --seeds 0 1 --rounds 3 --out FOLDER
    python benchmarks/hostile.py --preset digits --quick --pixels --seeds 0 1 2 --out FOLDER
    python benchmarks/hostile.py --preset cifar10-small --data FOLDER --seeds 0 --out FOLDER

How long: benchmarks/README.md.
"""

import argparse
import json
import logging
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from comparing.cases import file_of, refuse_to_overwrite, refuse_to_report_nothing
from comparing.images import prepared
from comparing.presets import CPU, PRESETS, Preset, Said, division
from comparing.shared import SharedTraining
from comparing.store import seeds_in
from comparing.units import bearing
from comparing.work import machine
from inprocess import Meddler, Round, quiet, rounds_of
from sklearn.metrics import roc_auc_score

from feddgm_flwr.build import build_learners, build_tools, first_state
from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.ensemble import Ensemble
from feddgm_flwr.core.images import ImageSet
from feddgm_flwr.core.params import Params, all_finite
from feddgm_flwr.core.robust import distance, towards
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.state import ClientUpdate, ServerState
from feddgm_flwr.core.synthetic import SyntheticSet
from feddgm_flwr.data.datasets import spec_of
from feddgm_flwr.federation.machine import device_of
from feddgm_flwr.files import write_atomically

logger = logging.getLogger(__name__)

CLIENTS, HOSTILE = 10, 2
LIE = 10**9
"""A claimed number of images."""
LOUD = 5.0
"""Length of the noise, in lengths of an honest movement."""
LITTLE = 1.5
"""Standard deviations by which "a little" shifts every entry (Baruch et al., arXiv 1902.06156)."""

OURS = "feddgm, mean"
UNLIMITED: Said = {"server.clip-examples": 0.0, "server.clip-movement": 0.0}
ROWS: dict[str, Said] = {
    OURS: {"method": "feddgm", "server.aggregate": "mean"},
    "feddgm, median": {"method": "feddgm", "server.aggregate": "median"},
    "feddgm, trimmed": {"method": "feddgm", "server.aggregate": "trimmed"},
    "feddgm, geometric median": {"method": "feddgm", "server.aggregate": "geometric-median"},
    "feddgm, clipped": {"method": "feddgm", "server.aggregate": "clipped"},
    "feddgm, clipped, counts up to 3": {
        "method": "feddgm",
        "server.aggregate": "clipped",
        "server.clip-examples": 3.0,
    },
    "feddgm, no limits": {"method": "feddgm", **UNLIMITED},
    "feddgm, examined": {"method": "feddgm", "union.examine": True},
    "fedavg": {"method": "fedavg"},
    "fedavg, no limits": {"method": "fedavg", **UNLIMITED},
    "krum": {"method": "krum", "robust.malicious": HOSTILE},
    "fedmedian": {"method": "fedmedian"},
}
"""Label -> what its config is told."""

SMALL: Said = {**CPU, "surrogate.depth": 2, "surrogate.width": 16}
DIGITS = Preset("digits", "scikit-learn's digits, 1,797 images", "", 0, said=SMALL)
KNOWN = {**PRESETS, "digits": DIGITS}
"""Name -> experiment; the small one for machines that are busy."""

QUICK: Said = {
    "distill.iterations": 4,
    "distill.warm-iterations": 4,
    "union.epochs": 10,
}
"""Less work, for all rows: what ``--quick`` tells every config."""

Reply = Callable[[ClientUpdate, Params, torch.Generator], ClientUpdate]
"""``reply(honest, sent, rng)``: what a hostile client sends in place of its honest update."""


def scaled(by: float) -> Reply:
    """Return the attack that multiplies the movement."""

    def reply(honest: ClientUpdate, sent: Params, rng: torch.Generator) -> ClientUpdate:
        return replace(honest, params=towards(sent, honest.params, by))

    return reply


def claimed(honest: ClientUpdate, sent: Params, rng: torch.Generator) -> ClientUpdate:
    """Claim a thousand million images."""
    return replace(honest, num_examples=LIE)


def honestly(honest: ClientUpdate, sent: Params, rng: torch.Generator) -> ClientUpdate:
    """Send what was trained; the lie is in the labels."""
    return honest


def noise(share: float) -> Reply:
    """Return the attack that moves at random, ``share`` times as far as honesty."""

    def reply(honest: ClientUpdate, sent: Params, rng: torch.Generator) -> ClientUpdate:
        away = {k: torch.randn(v.shape, generator=rng) for k, v in sent.items()}
        length = distance(away, {k: torch.zeros_like(v) for k, v in away.items()})
        by = share * distance(sent, honest.params) / length
        return replace(honest, params={k: v + by * away[k] for k, v in sent.items()})

    return reply


def not_a_number(honest: ClientUpdate, sent: Params, rng: torch.Generator) -> ClientUpdate:
    """Send NaN."""
    return replace(honest, params={k: v * math.nan for k, v in honest.params.items()})


ATTACKS: dict[str, Reply] = {
    "sign flip": scaled(-1.0),
    "100-fold": scaled(100.0),
    "count 1e9": claimed,
    "label flip": honestly,
    "noise": noise(LOUD),
    "NaN": not_a_number,
    "free rider": noise(1e-3),
    "a little": honestly,
}
"""In two of these the lie lies elsewhere: in the images, and in what the colluders know."""
HONEST, LEFT_OUT = "none", "left out"


@dataclass
class Hostile(Meddler):
    """Makes some clients of a run hostile, and keeps what was heard in the last round.

    Attributes
    ----------
    liars
        Their partition ids.
    state, heard
        What the last round's replies began with, and those that count.
    """

    attack: str
    liars: tuple[int, ...]
    classes: int
    seed: int
    state: ServerState | None = None
    heard: tuple[ClientUpdate, ...] = ()

    def images(self, partition_id: int, data: ImageSet) -> ImageSet:
        """Turn the labels of liars around."""
        if self.attack != "label flip" or partition_id not in self.liars:
            return data
        return replace(data, labels=self.classes - 1 - data.labels)

    def replies(self, state: ServerState, updates: list[ClientUpdate]) -> list[ClientUpdate]:
        """Let liars lie; what is not finite is set aside, as screening does."""
        gone = self.liars if self.attack == LEFT_OUT else ()
        said = [self._said(u, state, updates) for u in updates if u.partition_id not in gone]
        self.state, self.heard = state, tuple(u for u in said if all_finite(u.params))
        return list(self.heard)

    def _said(
        self, update: ClientUpdate, state: ServerState, updates: Sequence[ClientUpdate]
    ) -> ClientUpdate:
        if self.attack in (HONEST, LEFT_OUT) or update.partition_id not in self.liars:
            return update
        if self.attack == "a little":
            honest = [u.params for u in updates if u.partition_id not in self.liars]
            return replace(update, params=a_little(honest))
        rng = derive(self.seed, "hostile", state.server_round, update.partition_id)
        return ATTACKS[self.attack](update, state.surrogate, rng)


def a_little(honest: Sequence[Params]) -> Params:
    """Return the honest mean, shifted by so few deviations that no entry stands out."""
    stacks = {name: torch.stack([p[name] for p in honest]) for name in honest[0]}
    return {name: s.mean(0) - LITTLE * s.std(0) for name, s in stacks.items()}


@dataclass(frozen=True)
class Case:
    """One run."""

    row: str
    attack: str
    seed: int
    said: dict[str, Any]

    @property
    def name(self) -> str:
        """A file's name."""
        words = f"{self.row} {self.attack} seed{self.seed}"
        return "-".join("".join(c if c.isalnum() else " " for c in words).split())


@cache
def start_of(words: str, device: torch.device) -> ServerState:
    """Return the state that a seed's rows begin with; made once a process."""
    config = RunConfig.from_run_config(json.loads(words))
    return first_state(config, build_tools(config, spec_of(config.data), device), quiet)


def run_case(case: Case, out: Path, where: str = "") -> dict[str, Any]:
    """Run one case; return accuracy by round and what distillation says of each client.

    Clients train for their first round once for all cases, whose file is below ``out``: nobody lied
    before. ``where`` is the device; "" as the preset says.
    """
    torch.set_num_threads(1)
    logging.getLogger("feddgm_flwr").setLevel(logging.ERROR)
    config = RunConfig.from_run_config(case.said)
    spec, began = spec_of(config.data), time.perf_counter()
    device = device_of("--device", where or config.server.device)
    order = torch.randperm(CLIENTS, generator=derive(case.seed, "hostile"))
    liars = tuple(sorted(order[:HOSTILE].tolist()))
    hostile = Hostile(case.attack, liars, spec.num_classes, case.seed)
    module = build_learners(config, spec).surrogate.module
    record: dict[str, Any] = {"row": case.row, "attack": case.attack, "seed": case.seed,
                              "said": bearing(case.said), "liars": liars, "accuracy": [],
                              "clients": [], "diverged": "",
                              "machine": machine(device)}  # fmt: skip
    start = start_of(json.dumps({**case.said, **ROWS[OURS]}), device)
    local = SharedTraining(out / "data" / "local")
    try:
        for done in rounds_of(
            config, CLIENTS, after=start, device=device, local=local, meddler=hostile
        ):
            record["accuracy"].append(done.accuracy["surrogate"])
            record["clients"] += evidence(done, hostile, module)
    except (FloatingPointError, ValueError) as error:
        record["diverged"] = f"{type(error).__name__}: {error}"
    return {**record, "seconds": time.perf_counter() - began}


def evidence(done: Round, hostile: Hostile, module: torch.nn.Module) -> list[dict[str, Any]]:
    """Return, of each client of a round, whether it lied and what speaks for that."""
    assert hostile.state is not None
    sent = hostile.state.surrogate
    images = done.report.fresh if done.report else None
    losses = {d.partition_id: d for d in done.report.distilled} if done.report else {}
    lengths = {u.partition_id: distance(sent, u.params) for u in hostile.heard}
    usual = statistics.median(lengths.values()) or 1.0
    most = statistics.median(u.num_examples for u in hostile.heard)
    found = []
    for update in hostile.heard:
        who = update.partition_id
        said: dict[str, Any] = {
            "round": done.number,
            "client": who,
            "lies": who in hostile.liars and hostile.attack != HONEST,
            "believed": images is None or bool((images.owner == who).any()),
            "movement": lengths[who] / usual,
            "examples": update.num_examples / most,
        }
        if who in losses:
            said["matching loss left"] = losses[who].last_loss / losses[who].first_loss
        if images is not None and len(images):
            said |= agreement(who, hostile.heard, sent, images, module)
        found.append({k: v for k, v in said.items() if v == v})  # without NaN, which JSON lacks
    return found


@torch.no_grad()
def agreement(
    who: int,
    heard: Sequence[ClientUpdate],
    sent: Params,
    images: SyntheticSet,
    module: torch.nn.Module,
) -> dict[str, float]:
    """Return how far a client's images and its model agree with the other clients.

    Both are mean probabilities of the image's own class, over classes that both clients own, less
    what the surrogate says that all were sent: 0 is as good as that one.
    """
    labels = images.targets.argmax(1)
    owned = {u.partition_id: set(labels[images.owner == u.partition_id].tolist()) for u in heard}
    members = [u.params for u in heard] + [sent]
    told = Ensemble.of(module, members, torch.device("cpu")).each(images.images).softmax(2)
    right = told[:, torch.arange(len(labels)), labels]
    mine = images.owner == who
    of_images, of_model = [], []
    for index, other in enumerate(heard):
        if other.partition_id == who:
            continue
        shared = owned[other.partition_id] & owned[who]
        common = torch.tensor([int(k) in shared for k in labels])
        of_images.append((right[index] - right[-1])[mine & common])
        me = next(i for i, u in enumerate(heard) if u.partition_id == who)
        theirs = images.owner == other.partition_id
        of_model.append((right[me] - right[-1])[theirs & common])
    return {
        "its images, by others' models": float(torch.cat(of_images).mean()),
        "others' images, by its model": float(torch.cat(of_model).mean()),
    }


SIGNS = {
    "matching loss left": 1.0,
    "its images, by others' models": -1.0,
    "others' images, by its model": -1.0,
    "movement": 1.0,
    "examples": 1.0,
}
"""Evidence -> 1 where much of it speaks for a lie, -1 where little does."""


def cases(
    preset: Preset, rows: Iterable[str], attacks: Iterable[str], seeds: Iterable[int], more: Said
) -> list[Case]:
    """Return all runs, the honest ones of a seed first."""
    # Of these two the glyphs know the classes.
    known = preset.name in ("mnist5k", "digits") and more.get("prior.kind") != "pixel"
    start = {"start.weights": "prior" if known else "random"}
    common = {**preset.common, "client.compile": False, **more, **division(0.1, None), **start}
    return [
        Case(row, attack, seed, {**common, **ROWS[row], "seed": seed})
        for seed in seeds
        for attack in (HONEST, LEFT_OUT, *attacks)
        for row in rows
    ]


def stored(out: Path, case: Case) -> dict[str, Any] | None:
    """Return a finished run of today's settings."""
    file = file_of(out, case)
    record = json.loads(file.read_text()) if file.is_file() else None
    return record if record is not None and bearing(record["said"]) == bearing(case.said) else None


def keep(out: Path, case: Case, record: dict[str, Any]) -> None:
    """Write a finished run."""
    text = json.dumps(record, indent=1, allow_nan=False)
    write_atomically(file_of(out, case), text.encode())


def run_all(todo: Sequence[Case], out: Path, workers: int, where: str) -> None:
    """Run what is left and keep each run."""
    left = [case for case in todo if stored(out, case) is None]
    refuse_to_overwrite(out, left)
    logger.info("%d runs, %d done before", len(todo), len(todo) - len(left))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context) as pool:
        jobs = {pool.submit(run_case, case, out, where): case for case in left}
        for number, job in enumerate(as_completed(jobs), 1):
            case, record = jobs[job], job.result()
            keep(out, case, record)
            logger.info("%d of %d: %s: %.1f %% in %.0f s %s", number, len(left), case.name,
                        100 * last(record), record["seconds"],
                        record["diverged"])  # fmt: skip


def lost_table(done: Sequence[dict[str, Any]], attacks: Sequence[str]) -> str:
    """Return points lost against the honest run of the same row and seed, in Markdown.

    A row without an honest run is left out; what was not run is "-".
    """
    reached = {(r["row"], r["attack"], r["seed"]): last(r) for r in done}
    rows = list(dict.fromkeys(r["row"] for r in done if r["attack"] == HONEST))
    lines = [
        "| | honest | left out | " + " | ".join(attacks) + " | worst |",
        "|---" * (len(attacks) + 4) + "|",
    ]
    for row in rows:
        honest = {s: v for (r, a, s), v in reached.items() if r == row and a == HONEST}
        lost = [
            [100 * (honest[s] - reached[row, a, s]) for s in honest if (row, a, s) in reached]
            for a in (LEFT_OUT, *attacks)
        ]
        means = [statistics.mean(column) if column else math.nan for column in lost]
        worst = max((m for m in means[1:] if m == m), default=math.nan)
        cells = [100 * statistics.mean(honest.values()), *means, worst]
        lines.append(
            f"| {row} | " + " | ".join("-" if c != c else f"{c:.1f}" for c in cells) + " |"
        )
    return "\n".join(lines)


def last(record: dict[str, Any]) -> float:
    """Return the accuracy after the last round; 0 of a run that ended before."""
    return 0.0 if record["diverged"] else float(record["accuracy"][-1])


def detection_table(done: Sequence[dict[str, Any]], row: str, attacks: Sequence[str]) -> str:
    """Return the area under the ROC curve of each sign, honest clients against liars."""
    lines = ["| | " + " | ".join(attacks) + " |", "|---" * (len(attacks) + 1) + "|"]
    for sign, way in SIGNS.items():
        cells = []
        for attack in attacks:
            seen = [c for r in done if (r["row"], r["attack"]) == (row, attack)
                    for c in r["clients"] if sign in c]  # fmt: skip
            lies = [c["lies"] for c in seen]
            both = any(lies) and not all(lies)
            area = roc_auc_score(lies, [way * c[sign] for c in seen]) if both else math.nan
            cells.append(f"{area:.2f}" if area == area else "-")
        lines.append(f"| {sign} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def honest_extremes(done: Sequence[dict[str, Any]]) -> str:
    """Return the largest claims of honest clients, in medians of their round."""
    seen = [c for r in done if r["attack"] == HONEST for c in r["clients"]]
    most = {what: max(c[what] for c in seen) for what in ("movement", "examples")}
    return (
        f"largest of {len(seen)} honest replies, in medians of its round: movement "
        f"{most['movement']:.2f}, examples {most['examples']:.2f}"
    )


def main() -> None:
    """Run what is left and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=KNOWN, default="mnist5k")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="", help="auto, cpu or cuda, whatever the preset says")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="fewer descents and epochs")
    parser.add_argument("--pixels", action="store_true", help="no prior: optimise images")
    parser.add_argument("--report-only", action="store_true")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    preset = KNOWN[chosen.preset]
    if preset is DIGITS:
        data: Said = {"data.name": "digits"}
    else:
        data = prepared(preset, "report", chosen.data, chosen.out / "data").said
    more = {**data, **(QUICK if chosen.quick else {})}
    more |= {"prior.kind": "pixel"} if chosen.pixels else {}
    preset = preset.with_rounds(chosen.rounds)
    if not chosen.report_only:
        todo = cases(preset, chosen.rows, chosen.attacks, chosen.seeds, more)
        run_all(todo, chosen.out, chosen.workers, chosen.device)
    # All that is done, whichever of it was asked for this time: a table loses no row.
    known = cases(preset, ROWS, ATTACKS, sorted(seeds_in(chosen.out)), more)
    done = [r for r in (stored(chosen.out, case) for case in known) if r is not None]
    refuse_to_report_nothing(chosen.out, done)
    parts = ["points lost", lost_table(done, list(ATTACKS)), honest_extremes(done)]
    for row in dict.fromkeys(r["row"] for r in done if ROWS[r["row"]]["method"] == "feddgm"):
        parts += [f"told apart by, {row}", detection_table(done, row, list(ATTACKS))]
    text = "\n\n".join(parts)
    write_atomically(chosen.out / "table.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
