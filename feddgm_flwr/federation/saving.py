"""What a run has trained comes to the disk, also where that is full or gone for a while.

A round that cannot be saved is kept in memory, and the run goes on; at its end the server insists.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

AGAIN_S = 15.0
"""Seconds between two tries."""
TRIES = 120
"""After so many, half an hour, what is in memory is given up."""


class UnsavedError(RuntimeError):
    """What was trained could not be written."""


def why(error: OSError) -> str:
    """Return the reason in words."""
    return error.strerror or str(error)


def insist(save: Callable[[], None], what: str, folder: Path) -> None:
    """Call ``save`` until nothing of the disk stops it.

    Raises
    ------
    UnsavedError
        Something still did at the last of ``TRIES``.
    """
    for left in reversed(range(TRIES)):
        try:
            save()
        except OSError as error:
            place = f"{what} cannot be written to out-dir {str(folder)!r} ({why(error)})"
            if not left:
                raise UnsavedError(
                    f"{place}; make room there, then go on with resume = true from the newest "
                    "round that was saved"
                ) from error
            if left == TRIES - 1:
                logger.error(
                    "%s; make room there: the server tries again every %g s, for %g min",
                    place,
                    AGAIN_S,
                    AGAIN_S * TRIES / 60,
                )
            time.sleep(AGAIN_S)
        else:
            if left < TRIES - 1:
                logger.info("%s: written after all", what)
            return
