"""``feddgm-audit``: what a finished run tells of the images that its clients trained on.

It compares distances of the distilled images to members (images that clients trained on) and to
non-members, and attacks the run's models: can members be told? It writes audit.json, audit.md and
audit.png into RUN/audit, and keeps each reference model there, so that a second start goes on.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn
from tqdm import tqdm

from feddgm_flwr.auditing.membership import Attacked, Interval, attacked, half_of
from feddgm_flwr.auditing.nearness import Nearness, nearness
from feddgm_flwr.auditing.subject import (
    Real,
    Subject,
    first_surrogate,
    model_of,
    real_images,
    reference,
    reference_training,
)
from feddgm_flwr.core.images import ImageSet
from feddgm_flwr.core.params import fingerprint
from feddgm_flwr.core.seeding import derive, derive_seed
from feddgm_flwr.files import write_atomically
from feddgm_flwr.monitoring.plots import figure_of, save_figure


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command's options."""
    parser = argparse.ArgumentParser(
        prog="feddgm-audit", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    source = "a folder or .npz as a client's (docs/data.md)"
    parser.add_argument(
        "--members", type=Path, metavar="DATA",
        help=f"images that clients trained on: part train of {source}; the simulated clients' by "
        "default",
    )  # fmt: skip
    parser.add_argument(
        "--non-members", type=Path, metavar="DATA",
        help="images of the same kind that no client had, none of them a member: part test of "
        "such a source, or train where it has no test; the data set's test part by default",
    )  # fmt: skip
    parser.add_argument(
        "--population", type=Path, metavar="DATA",
        help="more such, none of them a member or a non-member, from which reference models learn: "
        "part train of such a source; half of the non-members by default",
    )  # fmt: skip
    parser.add_argument("--references", type=int, default=8, help="reference models (8)")
    options = parser.parse_args(arguments)
    if not 1 <= options.references <= 1000:
        parser.error(f"--references must be from 1 to 1000, got {options.references}; correct it")
    if options.members is not None and options.non_members is None:
        parser.error("--members needs --non-members, got none; name images that no client had")
    return options


def references(subject: Subject, population: ImageSet, count: int) -> list[nn.Module]:
    """Return reference models, each of half of the population; those that are there are read."""
    config, folder = subject.config, subject.folder / "audit" / "references"
    # Another population makes other models, and so does a run that went on for more rounds.
    epochs = torch.tensor(reference_training(config).epochs)
    mark = fingerprint({"images": population.images, "labels": population.labels, "epochs": epochs})
    names = [f"{mark}_{index:03d}.safetensors" for index in range(count)]
    start, found = None, []
    for index, name in enumerate(tqdm(names, desc="reference models", unit="model")):
        if not (folder / name).is_file():
            start = first_surrogate(config) if start is None else start
            rng = derive(config.seed, "audit-reference", index)
            model = reference(config, start, half_of(population, rng), rng)
            tensors = {k: v.contiguous() for k, v in model.state_dict().items()}
            write_atomically(folder / name, safetensors.torch.save(tensors))
        found.append(model_of(config, "surrogate", folder / name))
    return found


def near(subject: Subject, real: Real) -> dict[int, Nearness]:
    """Return how near each round's distilled images are to members and to non-members."""
    images = subject.distilled.items()
    others = torch.cat([real.non_members.images, real.population.images])
    return {
        number: nearness(
            distilled, real.members.images, others, rng=_rng(subject, "audit-nearness", number)
        )
        for number, distilled in tqdm(images, desc="distances, by round", unit="round")
    }


def attacks(subject: Subject, real: Real, others: Sequence[nn.Module]) -> dict[str, Attacked]:
    """Return the attack on each of the run's models."""
    return {
        name: attacked(
            model, others, real.members, real.non_members,
            rng=_rng(subject, "audit-attack", index),
        )
        for index, (name, model) in enumerate(
            tqdm(subject.models.items(), desc="attacks", unit="model")
        )
    }  # fmt: skip


def _rng(subject: Subject, purpose: str, *address: int) -> np.random.Generator:
    return np.random.default_rng(derive_seed(subject.config.seed, purpose, *address))


def as_json(
    real: Real, near_by_round: dict[int, Nearness], by_model: dict[str, Attacked], count: int
) -> dict[str, Any]:
    """Return all figures."""
    return {
        "members": len(real.members),
        "non_members": len(real.non_members),
        "population": len(real.population),
        "reference_models": count,
        "nearness": {str(n): asdict(found) for n, found in near_by_round.items()},
        "attacks": {
            name: {
                "accuracy_on_members": a.accuracy[0],
                "accuracy_on_non_members": a.accuracy[1],
                "rmia": a.rmia.figures,
                "loss": a.loss.figures,
            }
            for name, a in by_model.items()
        },
    }


def table(
    real: Real, near_by_round: dict[int, Nearness], by_model: dict[str, Attacked], count: int
) -> str:
    """Return the figures in Markdown."""
    lines = [
        f"{len(real.members)} members, {len(real.non_members)} non-members, {count} reference "
        f"models of {len(real.population)} population images. In brackets: 95 % of bootstrap "
        "replicates. Guessing is an AUC of 0.5, and a true-positive rate of the false-positive "
        "one; a rate is left out (-) where the non-members are fewer than one over it.",
        "",
        "| model | accuracy on members | on non-members | attack | AUC | true positives at 1 % | "
        "at 0.1 % |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, a in by_model.items():
        for attack, found in (("RMIA", a.rmia), ("loss", a.loss)):
            rates = ["-" if i is None else str(i) for i in found.true_positives.values()]
            cells = [name, *(f"{100 * x:.1f} %" for x in a.accuracy), attack, _plain(found.auc)]
            lines.append(f"| {' | '.join([*cells, *rates])} |")
    if not near_by_round:
        lines += ["", "The run kept no distilled images."]
        return "\n".join(lines) + "\n"
    lines += [
        "",
        "| round | distilled images | distance to the nearest member | non-member | ratio | p | "
        "nearer to a member |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {n} | {f.images} | {f.members:.3f} | {f.non_members:.3f} | {f.ratio:.3f} | "
        f"{f.p_value:.3f} | {100 * f.nearer:.0f} % |"
        for n, f in near_by_round.items()
    ]
    lines += [
        "",
        "Medians over the images, to as many members as non-members; a ratio below 1 says that "
        "members are nearer, and p how often it would be as low if it did not matter who is one.",
    ]
    return "\n".join(lines) + "\n"


def _plain(i: Interval) -> str:
    return f"{i.value:.3f} ({i.low:.3f} to {i.high:.3f})"


def draw(near_by_round: dict[int, Nearness], by_model: dict[str, Attacked], path: Path) -> None:
    """Draw the attacks' curves, and the ratio of distances by round."""
    figure, left = figure_of(9.0, 4.2)
    left.set_position((0.08, 0.13, 0.4, 0.77))
    for name, a in by_model.items():
        false, true = a.curve
        label = f"{name}, AUC {a.rmia.auc.value:.3f}"
        left.plot(np.maximum(false, 1e-4), np.maximum(true, 1e-4), label=label)
    left.plot([1e-4, 1], [1e-4, 1], color="#888888", linestyle="--", label="guessing")
    left.set(xscale="log", yscale="log", xlim=(1e-3, 1), ylim=(1e-3, 1))
    left.set(xlabel="false-positive rate", ylabel="true-positive rate")
    left.set_title("Membership attack (RMIA) on the models", fontsize=10)
    left.legend(frameon=False, fontsize=8)
    right = figure.add_axes((0.58, 0.13, 0.4, 0.77))
    right.plot(list(near_by_round), [f.ratio for f in near_by_round.values()], marker="o")
    right.axhline(1, color="#888888", linestyle="--")
    right.set(xlabel="round", ylabel="distance to members / to non-members")
    right.set_title("Nearest real image of distilled ones", fontsize=10)
    save_figure(figure, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 where the audit was made."""
    options = parse(arguments)
    try:
        subject = Subject.of(options.run.absolute())
        real = real_images(subject, options.members, options.non_members, options.population)
        # They need the run's prior; and what clients bear with noise may diverge without it.
        others = references(subject, real.population, options.references)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.stdout.write(f"{error}\n")
        return 1
    near_by_round, by_model = near(subject, real), attacks(subject, real, others)
    found = real, near_by_round, by_model, len(others)
    folder = subject.folder / "audit"
    text = json.dumps(as_json(*found), indent=2, allow_nan=False) + "\n"
    write_atomically(folder / "audit.json", text.encode())
    write_atomically(folder / "audit.md", table(*found).encode())
    draw(near_by_round, by_model, folder / "audit.png")
    sys.stdout.write(f"{table(*found)}\nwritten: {folder}/audit.json, audit.md, audit.png\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
