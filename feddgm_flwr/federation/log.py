"""Log lines of this package, where Flower's are shown."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from feddgm_flwr.federation.lock import InUseError
from feddgm_flwr.federation.roster import TooFewClientsError
from feddgm_flwr.federation.saving import UnsavedError
from feddgm_flwr.federation.screening import NoReplyError

logger = logging.getLogger("feddgm_flwr")


class _ToFlower(logging.Handler):
    """Hands our log records to Flower's logger, whose output `flwr log` shows."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger("flwr").handle(record)


def show_log() -> None:
    """Let this package's log lines appear where Flower's do."""
    if not any(isinstance(h, _ToFlower) for h in logger.handlers):
        logger.addHandler(_ToFlower())
        # Flower's logger passes records on too; once is enough.
        logger.propagate = False
    logger.setLevel(logging.INFO)


FATES = (TooFewClientsError, NoReplyError, InUseError, UnsavedError)
"""What befalls a run from outside: their sentences say all, and no line of code is to blame."""


def _without_trace(record: logging.LogRecord) -> bool:
    """Let Flower say that the ServerApp failed, but not where, if that was a fate."""
    if record.exc_info and isinstance(record.exc_info[1], FATES):
        record.exc_info = record.exc_text = None
    return True


@contextmanager
def said_plainly() -> Iterator[None]:
    """Say an error of the settings, or a fate, in one line, before Flower logs that it failed."""
    logging.getLogger("flwr").addFilter(_without_trace)  # once: Python adds it but once
    try:
        yield
    except (ValueError, TypeError, *FATES) as error:
        logger.error("this run cannot go on: %s", error)
        raise
