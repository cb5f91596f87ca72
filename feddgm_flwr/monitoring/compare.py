"""Compare runs: ``python -m feddgm_flwr.monitoring.compare RESULT.json... --out accuracy.png``.

Prints a table of accuracy by round and draws the same as a plot. A file that is no ``result.json``
of this version is refused in one sentence.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from feddgm_flwr.monitoring.plots import apart, curves, draw_accuracy

NUMBER = (int, float)
NEEDED: Mapping[str, tuple[type, ...]] = {
    "method": (str,),
    "dataset": (str,),
    "partition": (str,),
    "alpha": (*NUMBER, type(None)),
    "clients": (int,),
    "seed": (int,),
    "rounds": (list,),
    "generator_only": (dict,),
}
"""Keys of a ``result.json`` that are read here -> the types that they may be of."""


def read(path: Path) -> dict[str, Any]:
    """Return a run's results.

    Raises
    ------
    ValueError
        It cannot be read, or is no ``result.json`` of this version.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        said, remedy = f"a file that can be read, got: {error.strerror}", "name another"
    except (ValueError, RecursionError) as error:
        words = " ".join(str(error).split())[:200]
        said, remedy = f"the result.json of a run, got no JSON: {words}", "name another"
    else:
        fault = next(_faults(result), "")
        if not fault:
            return dict(result)
        said, remedy = f"the result.json of a run, got {fault}", _remedy(result)
    raise ValueError(f"{str(path)!r} must be {said}; {remedy}")


def _faults(result: object) -> Iterator[str]:
    """Yield what keeps ``result`` from being compared; after the first it may not be asked on."""
    if not isinstance(result, dict):
        yield f"a JSON {_json_type(result)}"
        return
    for key, types in NEEDED.items():
        if key not in result:
            yield f"none of the key {key!r}"
        elif not _is(result[key], types):
            yield f"{_json_type(result[key])} for the key {key!r}"
    for done in result["rounds"]:
        whole = isinstance(done, dict) and _is(done.get("round"), (int,))
        if not whole or not _are_shares(done.get("accuracy")):
            yield "a round without its number or the accuracy of each model from 0 to 1"
    if not _are_shares(result["generator_only"].get("accuracy", {})):
        yield "a control without the accuracy of each model from 0 to 1"


def _is(value: object, types: tuple[type, ...]) -> bool:
    return isinstance(value, types) and not isinstance(value, bool)


def _are_shares(values: object) -> bool:
    return isinstance(values, dict) and all(_is(v, NUMBER) and 0 <= v <= 1 for v in values.values())


def _json_type(value: object) -> str:
    """Return what JSON calls the type of ``value``."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _remedy(result: object) -> str:
    if isinstance(result, dict) and "strategy" in result and "method" not in result:
        return "it is of version 0.1.0, which said 'strategy': rename that key to 'method'"
    return "name another or make it anew"


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
    for result, own in zip(results, apart(results), strict=True):
        for model, value in result["generator_only"].get("accuracy", {}).items():
            where = f"seed {result['seed']}{''.join(own)}"
            said.append(f"control, {model} trained on the prior alone ({where}): {value:.1%}")
    return said


def draw(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw accuracy by round.

    Raises
    ------
    ValueError
        The file cannot be written.
    """
    try:
        got = "a folder" if path.is_dir() else ""
        if not got:
            draw_accuracy(results, path)
    except OSError as error:
        got = str(error)
    if got:
        raise ValueError(
            f"--out {str(path)!r} must be a file that can be written, got: {got}; name another"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 1 where a file cannot be read or written."""
    parser = argparse.ArgumentParser(prog="feddgm_flwr.monitoring.compare", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="result.json of each run")
    parser.add_argument("--out", type=Path, help="draw accuracy by round to this PNG")
    chosen = parser.parse_args(arguments)
    try:
        results = [read(path) for path in chosen.results]
        sys.stdout.write(table(results) + "\n")
        if chosen.out:
            draw(results, chosen.out)
            sys.stdout.write(f"drawn: {chosen.out}\n")
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
