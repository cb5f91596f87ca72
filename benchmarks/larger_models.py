"""Larger global models beside the surrogate, and FedAvg of each at its own, larger, bytes.

Claim: docs/results.md. A model that no client trains and that never travels hears of what the
surrogate knows on pictures made for the purpose. One run has all the models that are asked for:
they share clients, surrogate and teachers, and none knows of the others. FedAvg of an architecture
sends all its weights and statistics both ways, and trains the same clients as long.

    python benchmarks/larger_models.py --preset cifar10-small --data PACK.npz --device cuda \
        --models resnet18 vit --rounds 3 --steps 2000

Every finished round is kept, and a second start goes on where the first was ended. Rows are those
of ``compare.py``; so is the table, which lies in a folder of its own for each choice of models.
"""

import argparse
import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from compare import RESULTS, setting
from comparing import tables
from comparing.entries import OURS, Entry
from comparing.images import prepared
from comparing.presets import PRESETS, division, division_name
from comparing.store import Record, all_stored
from comparing.units import Unit, unit_of
from comparing.work import machine, run_unit
from inprocess import Cost, Seconds, Stopwatch, client_sets
from safetensors import safe_open
from torch import Tensor

from feddgm_flwr.core.evaluation import evaluate
from feddgm_flwr.core.learning import copied
from feddgm_flwr.core.memory import keep_freed_memory
from feddgm_flwr.core.models import GLOBAL_MODELS, build_global_model, initialise
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.training import train
from feddgm_flwr.data.datasets import load, spec_of
from feddgm_flwr.federation.machine import device_of, name_of
from feddgm_flwr.federation.sampling import sampled
from feddgm_flwr.files import write_atomically
from feddgm_flwr.monitoring.results import versions

logger = logging.getLogger(__name__)

Weights = dict[str, Tensor]
LEAST = 2
"""Images that a client needs to train a model with batch norm."""


def options() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    say = parser.add_argument
    say("--preset", choices=PRESETS, required=True)
    say("--data", type=Path, help="where the data set is, if it comes not with the installation")
    say("--models", nargs="+", choices=GLOBAL_MODELS, default=["resnet18"])
    say("--seeds", type=int, nargs="+", default=[0])
    say("--alpha", type=float, default=0.1, help="Dirichlet concentration")
    say("--rounds", type=int, help="other than the preset's")
    say("--steps", type=int, default=200, help="of a model that listens, a round")
    say("--fedavg", nargs="*", choices=GLOBAL_MODELS, help="of these; default: of all the models")
    say("--fedavg-lr", type=float, default=0.05, help="its clients' learning rate")
    say("--set", type=setting, nargs="+", default=[], metavar="KEY=VALUE", help="more for ours")
    say("--device", default="", help="auto, cpu or cuda, whatever the preset says")
    say("--threads", type=int, default=1, help="of the CPU; they decide the last bits")
    say("--out", type=Path, help="folder of the runs; default benchmarks/results/PRESET")
    return parser.parse_args()


@dataclass(frozen=True)
class Average:
    """FedAvg of one architecture: the clients, data and seed of ``unit``, at a rate of its own."""

    model: str
    unit: Unit
    lr: float

    @property
    def name(self) -> str:
        """A file's name: readable, then a digest of all that it depends on."""
        told = {k: v for k, v in self.unit.resolved.items() if not k.startswith("global-model.")}
        words = json.dumps([told, self.unit.fingerprint, self.lr], sort_keys=True)
        digest = hashlib.sha256(words.encode()).hexdigest()[:12]
        return f"fedavg-{self.model}-seed{self.unit.seed}-{digest}"


@dataclass(frozen=True)
class Averaged:
    """Rounds done, the mean after the last of them, and each round as a record has it."""

    weights: Weights
    rounds: list[Record]


def averaged(row: Average, out: Path, device: torch.device) -> Record:
    """Run what is left of ``row``, and return its record."""
    config, file = row.unit.config, out / "partial" / f"{row.name}.safetensors"
    before = _read(file) if file.is_file() else Averaged(_fresh(row), [])
    done, diverged = before, ""
    try:
        for done in rounds_after(before, row, device):
            _write(file, done)
            reached = 100 * done.rounds[-1]["accuracy"][row.model]
            logger.info("fedavg: %s, round %d: %.1f %%", row.model, len(done.rounds), reached)
    except FloatingPointError as error:
        diverged = str(error)
    return {
        "label": "fedavg",
        "seed": config.seed,
        "clients": row.unit.clients,
        "fingerprint": row.unit.fingerprint,
        "tried": {"client.lr": row.lr},
        "config": row.unit.resolved,
        "versions": versions(),
        "machine": machine(device),
        "start": {row.model: 1 / len(spec_of(config.data).classes)},
        "rounds": done.rounds,
        "length": row.unit.length,
        "diverged": diverged,
    }


def _fresh(row: Average) -> Weights:
    config = row.unit.config
    module = build_global_model(row.model, spec_of(config.data), config.surrogate)
    initialise(module, rng=derive(config.seed, "global-model", 0))
    return copied(module.state_dict())


def rounds_after(done: Averaged, row: Average, device: torch.device) -> Iterator[Averaged]:
    """Yield the rounds that follow ``done``.

    Raises
    ------
    FloatingPointError
        A client diverged.
    """
    config, test = row.unit.config, load(row.unit.config.data, "test")
    module = build_global_model(row.model, spec_of(config.data), config.surrogate).to(device)
    local = replace(config.client, lr=row.lr)
    members = client_sets(config.data, row.unit.clients, config.seed)
    able = {i: own for i, own in enumerate(members) if len(own) >= LEAST}
    while len(done.rounds) < row.unit.length:
        number, watch, replies = len(done.rounds) + 1, Stopwatch(), []
        everyone, share = range(row.unit.clients), config.rounds.fraction_train
        asked = [i for i in sampled(everyone, share, config.seed, number) if i in able]
        with watch.running():
            for i in asked:
                own = able[i]
                module.load_state_dict(done.weights)
                rng = derive(config.seed, "client", number, i)
                train(module, own.images.to(device), own.labels.to(device), local, rng=rng)
                replies.append(copied(module.state_dict()))
        counts = [len(able[i]) for i in asked]
        mean = mean_of(replies, counts) if replies else done.weights
        module.load_state_dict(mean)
        accuracy = evaluate(module, test.images, test.labels).accuracy
        sent = len(asked) * sum(value.nbytes for value in mean.values())
        cost = Cost(sent, sent, watch.seconds, Seconds(), name_of(device), name_of(device))
        told = {
            "round": number,
            "accuracy": {row.model: accuracy},
            "asked": max(1, len(asked)),
            **asdict(cost),
        }
        done = Averaged(mean, [*done.rounds, told])
        yield done


def mean_of(replies: list[Weights], counts: list[int]) -> Weights:
    """Return the mean by example counts of all weights and statistics; a counter is the first's."""
    share = [n / sum(counts) for n in counts]
    return {
        name: sum((s * reply[name] for s, reply in zip(share, replies, strict=True)), 0 * first)
        if first.is_floating_point()
        else first
        for name, first in replies[0].items()
    }


def _write(file: Path, done: Averaged) -> None:
    about = {"rounds": json.dumps(done.rounds)}
    write_atomically(file, safetensors.torch.save(done.weights, about))


def _read(file: Path) -> Averaged:
    with safe_open(file, "pt") as opened:
        rounds = json.loads(opened.metadata()["rounds"])
    return Averaged(safetensors.torch.load_file(file), rounds)


def ours(chosen: argparse.Namespace, out: Path) -> list[Unit]:
    """Return FedDGM's runs, a seed each, with all the models."""
    preset = PRESETS[chosen.preset].with_rounds(chosen.rounds)
    images = prepared(preset, "report", chosen.data, out / "data")
    listening = {"global-model.names": ",".join(chosen.models), "global-model.steps": chosen.steps}
    entry = Entry(OURS, {**listening, **dict(chosen.set)})
    how = division(chosen.alpha, None)
    units = [unit_of(preset, entry, images, how, seed, {}) for seed in chosen.seeds]
    return [replace(unit, device=chosen.device) for unit in units]


def main() -> None:
    """Run what is left, and make the table."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    chosen = options()
    torch.set_num_threads(chosen.threads)
    keep_freed_memory()
    out = chosen.out or RESULTS / chosen.preset
    units = ours(chosen, out)
    stored, records = all_stored(out, units), []
    for unit in units:
        device = device_of("--device", chosen.device or unit.config.server.device)
        records.append(stored[unit.name] if unit.name in stored else run_unit(unit, out))
        _report(records, units, chosen, out)
        for model in chosen.models if chosen.fedavg is None else chosen.fedavg:
            records.append(averaged(Average(model, unit, chosen.fedavg_lr), out, device))
            _report(records, units, chosen, out)


def _report(
    records: list[Record], units: list[Unit], chosen: argparse.Namespace, out: Path
) -> None:
    """Print the table so far, and keep it with its records."""
    how = division_name(division(chosen.alpha, None))
    title = f"{chosen.preset}, {units[0].clients} clients, {how.replace('-', ' ')}"
    steps = f"{chosen.steps} steps of a larger model a round"
    table = tables.accuracy_table(tables.rows_of(records))
    folder = out / f"{how}-larger-{'-'.join(chosen.models)}"
    whole = {"title": f"{title}, {steps}", "runs": records}
    write_atomically(folder / "results.json", json.dumps(whole, separators=(",", ":")).encode())
    text = f"# {title}, {steps}\n\n{tables.EXPLAINED}\n{table}"
    write_atomically(folder / "table.md", text.encode())
    print(table, flush=True)


if __name__ == "__main__":
    main()
