"""The parts of our recipe on one experiment: each left out, each alone, and what is off by default.

Claim: docs/results.md. Options, storage and tables are those of ``compare.py``, whose tuned
settings all rows share; the rows stand in ``comparing/parts.py``.

    python benchmarks/ablate.py --preset cifar10-small --data PACK.npz --seeds 0 1 2

How long: benchmarks/README.md.
"""

from compare import carry_out, job_of, options
from comparing.parts import ROWS


def main() -> None:
    """Run the ablation."""
    chosen = options(__doc__, ROWS)
    carry_out(job_of(chosen, ROWS, "parts"), chosen)


if __name__ == "__main__":
    main()
