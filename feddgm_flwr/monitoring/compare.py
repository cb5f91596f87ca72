"""Compare runs: ``python -m feddgm_flwr.monitoring.compare RESULT.json... --out accuracy.png``.

Prints a table of accuracy by round and draws the same as a plot.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from feddgm_flwr.monitoring.plots import curves, draw_accuracy


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return test accuracy by round: a row a round, a column a model and run."""
    lines = {name: dict(points) for name, points in curves(results).items()}
    rounds = sorted({r for points in lines.values() for r in points})
    head = ["round", *lines]
    body = [[str(r), *(f"{p[r]:.1%}" if r in p else "-" for p in lines.values())] for r in rounds]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    rows = [
        "  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True))
        for row in [head, *body]
    ]
    return "\n".join([*rows, *_controls(results)])


def _controls(results: Sequence[Mapping[str, Any]]) -> list[str]:
    said = []
    for result in results:
        for model, value in result["generator_only"].get("accuracy", {}).items():
            said.append(
                f"control, {model} trained on the prior alone (seed {result['seed']}): {value:.1%}"
            )
    return said


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="feddgm_flwr.monitoring.compare", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="result.json of each run")
    parser.add_argument("--out", type=Path, help="draw accuracy by round to this PNG")
    chosen = parser.parse_args(arguments)
    results = [json.loads(path.read_text(encoding="utf-8")) for path in chosen.results]
    sys.stdout.write(table(results) + "\n")
    if chosen.out:
        draw_accuracy(results, chosen.out)
        sys.stdout.write(f"drawn: {chosen.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
