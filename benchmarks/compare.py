"""Federated methods side by side on one experiment: accuracy and cost by round, over seeds.

Claim: README, "Results". All rows have the same clients, images, rounds, local epochs and seeds;
each one's settings are chosen beforehand by a grid of equal size (``--tune``), on images and a seed
that no table reports on. Every finished run is kept, and a second start goes on where the first was
ended. What is compared stands in ``comparing/entries.py``, on what in ``comparing/presets.py``.

    python benchmarks/compare.py --preset fashion --data FOLDER --tune
    python benchmarks/compare.py --preset fashion --data FOLDER --seeds 0 1 2 3 4

How long: benchmarks/README.md.
"""

import argparse
import logging
import signal
import tomllib
from collections.abc import Sequence
from pathlib import Path

from comparing.entries import ENTRIES, Entry
from comparing.job import Job
from comparing.presets import PRESETS, division

from feddgm_flwr.core.settings import Scalar

RESULTS = Path(__file__).parent / "results"


def options(about: str | None, among: Sequence[Entry] = ENTRIES) -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawTextHelpFormatter
    )
    say = parser.add_argument
    say("--preset", choices=PRESETS, required=True)
    say("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    say(
        "--methods",
        nargs="+",
        metavar="LABEL",
        help="rows beside those that the table has; all by default, but with --report-only none: "
        + "; ".join(entry.label for entry in among),
    )
    say("--data", type=Path, help="where the data set is, if it comes not with the installation")
    say("--alpha", type=float, default=0.1, help="Dirichlet concentration")
    say("--classes-per-client", type=int, help="divide by classes instead")
    say("--rounds", type=int, help="other than the preset's, for a trial")
    say("--prior", type=Path, help="folder of the autoencoder, where the preset has one")
    say(
        "--set",
        type=setting,
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="tell all runs more than the preset does, for a trial: client.epochs=2",
    )
    say("--workers", type=int, default=2, help="runs at a time, each on one thread")
    say("--device", default="", help="auto, cpu or cuda, whatever the preset says")
    say("--out", type=Path, help="folder of the runs; default benchmarks/results/PRESET")
    say("--tune", action="store_true", help="choose each row's settings by its grid")
    say("--untuned", action="store_true", help="run rows that were not tuned, as the preset says")
    say("--list", action="store_true", help="show the runs and which are done")
    say("--report-only", action="store_true", help="make tables and plots of what is done")
    return parser.parse_args()  # fmt: skip


def setting(text: str) -> tuple[str, Scalar]:
    """Return what KEY=VALUE says, the value as in a run config: a word needs no quotes."""
    key, _, value = text.partition("=")
    try:
        read: Scalar = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        read = value
    return key, read


def job_of(chosen: argparse.Namespace, among: Sequence[Entry] = ENTRIES, table: str = "") -> Job:
    """Return what the command line asks for."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # A terminated comparison ends its workers, as an interrupted one does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    labels = () if chosen.report_only and chosen.methods is None else chosen.methods
    return Job.of(
        PRESETS[chosen.preset].with_rounds(chosen.rounds),
        division(chosen.alpha, chosen.classes_per_client),
        out=chosen.out or RESULTS / chosen.preset,
        committed=RESULTS / chosen.preset,
        data=chosen.data,
        prior=chosen.prior,
        labels=labels,
        among=among,
        table=table,
        device=chosen.device,
        said=dict(chosen.set),
    )


def carry_out(job: Job, chosen: argparse.Namespace) -> None:
    """Tune, or run what is left and report."""
    if chosen.tune:
        job.tune(chosen.workers, only_list=chosen.list)
        return
    job.compare(
        chosen.seeds,
        chosen.workers,
        untuned=chosen.untuned,
        only_list=chosen.list,
        only_report=chosen.report_only,
    )


def main() -> None:
    """Run the comparison."""
    chosen = options(__doc__)
    carry_out(job_of(chosen), chosen)


if __name__ == "__main__":
    main()
