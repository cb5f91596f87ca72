"""Whether a grid of two by two ended too early: what lies one step beyond the corner it chose.

Claim: benchmarks/README.md, "Tuning". The best of two values of each of two settings is always at
an edge. Here the strongest opponents try one value further along each, on the images and the seed
that tuned them; scores are mean accuracies over the rounds, as in ``tuned.json``.

    python benchmarks/beyond_grids.py --preset cifar10-small --data PACK.npz

How long: benchmarks/README.md.
"""

from compare import job_of, options
from comparing import tuning
from comparing.entries import ENTRIES, Entry
from comparing.images import prepared
from comparing.presets import Said
from comparing.store import all_stored
from comparing.tables import markdown
from comparing.units import Unit, tuning_unit

BEYOND: dict[str, tuple[Said, ...]] = {
    "fedadam": (
        {"client.lr": 0.2, "fedopt.lr": 0.1},
        {"client.lr": 0.1, "fedopt.lr": 0.3},
    ),
    "fedavgm": (
        {"client.lr": 0.2, "fedopt.momentum": 0.5},
        {"client.lr": 0.1, "fedopt.momentum": 0.3},
    ),
}
"""Row -> what lies beyond the corner that its grid chose on fashion and on cifar10-small."""


def main() -> None:
    """Run what is left, and print each row's grid with what lies beyond it."""
    among = [entry for entry in ENTRIES if entry.label in BEYOND]
    chosen = options(__doc__, among)
    job = job_of(chosen, among)
    images = prepared(job.preset, "tuning", job.data, job.out / "data")
    rows: list[tuple[Entry, Said, Unit]] = [
        (entry, tried, tuning_unit(job.preset, entry, images, job.division, tried))
        for entry in job.entries
        for tried in (*entry.grid, *BEYOND[entry.label])
    ]
    units = [unit for *_, unit in rows]
    done = all_stored(job.out, units) if chosen.report_only else job.run(units, chosen.workers)
    lines = [
        [
            entry.label,
            ", ".join(f"{key} = {value}" for key, value in tried.items()),
            "beyond" if tried in BEYOND[entry.label] else "grid",
            f"{100 * tuning.score(done[unit.name]):.1f}",
        ]
        for entry, tried, unit in rows
        if unit.name in done
    ]
    print(markdown(["row", "settings", "where", "score"], lines))


if __name__ == "__main__":
    main()
