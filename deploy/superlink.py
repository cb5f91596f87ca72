"""Flower's SuperLink, whose database waits longer for a lock.

    python superlink.py PATH/flower-superlink OPTIONS...

Each call of a node is a write to one SQLite file. Flower gives it 5 s to get the file, and then
drops what it carried: of fifty devices that answered at once some lost their reply, which nobody
sends again, and a run its heartbeat, without which it is given up ("database is locked" in the
SuperLink's log). Here it has ``WAIT_S``; a file that nobody else holds is had as fast as before.

Flower has no setting for it, so a constant of its own is replaced; a Flower without that constant
runs as it is, with a line that says so. Knows nothing else of Flower.
"""

import importlib
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

WAIT_S = 120
"""Longer than any burst of a few hundred nodes, and than a SuperNode waits for anything."""
HOLDER, CONSTANT, PRAGMA = "flwr.supercore.sql_mixin", "SQLITE_PRAGMAS", "busy_timeout"


def patient(pragmas: Sequence[tuple[str, str]], wait_s: int) -> tuple[tuple[str, str], ...]:
    """Return SQLite's settings with another wait for the lock.

    Raises
    ------
    LookupError
        They have no such wait.
    """
    if PRAGMA not in dict(pragmas):
        raise LookupError(f"{CONSTANT} must name {PRAGMA}, got {sorted(dict(pragmas))}")
    return tuple((name, str(1000 * wait_s) if name == PRAGMA else said) for name, said in pragmas)


def wait_longer(wait_s: int = WAIT_S) -> None:
    """Let Flower's databases wait, or say why they do not."""
    try:
        holder = importlib.import_module(HOLDER)
        setattr(holder, CONSTANT, patient(getattr(holder, CONSTANT), wait_s))
    except (ImportError, AttributeError, LookupError) as reason:
        print(
            f"this Flower's database waits as long as Flower says ({reason}); with many devices, "
            "look for 'database is locked' in this log",
            file=sys.stderr,
        )


if __name__ == "__main__":
    wait_longer()
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)  # as the program has it when it is started itself
    runpy.run_path(sys.argv[0], run_name="__main__")
