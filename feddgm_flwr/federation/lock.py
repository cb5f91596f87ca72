"""A run folder is one run's alone: a lock on a file in it.

The system releases it when its holder ends, however that ends. It cannot be held in a folder that
is removed meanwhile. Knows nothing of what else is in the folder.
"""

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

FILE = "run.lock"
"""Names who holds the folder, or held it last."""


class InUseError(RuntimeError):
    """Another run uses the folder."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold ``folder``, which is there and can be written, for this run alone.

    Raises
    ------
    InUseError
        Another run holds it.
    """
    # Not cut when it is opened: it names the holder.
    with (folder / FILE).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise InUseError(
                f"out-dir must be one run's alone, got {str(folder)!r}, which "
                f"{file.read().strip() or 'another process'} is using; wait for the end of that "
                "run or stop it (flwr stop; where its SuperLink is gone, kill -9 the process), or "
                "name another out-dir"
            ) from error
        except OSError as error:
            logger.warning(
                "%s cannot be locked (%s): see to it that no other run uses it",
                folder,
                error.strerror,
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
