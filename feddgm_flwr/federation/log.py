"""Log lines of this package, where Flower's are shown."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from feddgm_flwr.federation.roster import TooFewClientsError
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


@contextmanager
def said_plainly() -> Iterator[None]:
    """Say an error of the settings in one line, before Flower logs its traceback."""
    try:
        yield
    except (ValueError, TypeError, TooFewClientsError, NoReplyError) as error:
        logger.error("this run cannot go on: %s", error)
        raise
