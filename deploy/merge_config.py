"""Merge config files and ``key=value`` strings into one file; the last one said wins.

Usage: ``python deploy/merge_config.py OUT [-c FILE.toml | -c 'key=value ...']...``.
``flwr run`` takes a single file or a list of strings, never both. Of a key that it does not know it
says no more; here a renamed or misspelt one is told the right name.
"""

import argparse
import sys
from pathlib import Path

import tomli_w
from flwr.common.config import parse_config_args, unflatten_dict

from feddgm_flwr.config import check_known


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="merge_config.py", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("-c", "--run-config", action="append", default=[])
    chosen = parser.parse_args(arguments)
    merged = {}
    for said in chosen.run_config:
        merged |= parse_config_args([said])
    try:
        check_known(merged)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    chosen.out.write_text(tomli_w.dumps(unflatten_dict(merged)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
