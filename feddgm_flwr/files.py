"""Files that are whole or absent, whatever happens while they are written; or that tell damage."""

import hashlib
import os
import secrets
from contextlib import suppress
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``; a crash leaves the old file or the new one.

    Of several who write it at a time the last one wins, whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        # On a full disk half a file is in the way of the next one.
        with suppress(OSError):
            temporary.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        # The rename is on the disk only once its folder is.
        os.fsync(folder)
    finally:
        os.close(folder)


class DamagedError(ValueError):
    """A sealed file is not what was written."""


def seal(path: Path, kind: str, payload: bytes) -> None:
    """Replace ``path`` by ``payload`` behind a line that names its ``kind``, and its SHA-256."""
    head = f"{kind}\n".encode()
    write_atomically(path, head + hashlib.sha256(payload).digest() + payload)


def unseal(path: Path, kind: str) -> bytes:
    """Return what ``seal`` wrote.

    Raises
    ------
    DamagedError
        A byte is missing or another, or the file is of another kind.
    OSError
        It cannot be read.
    """
    data, head = path.read_bytes(), f"{kind}\n".encode()
    digest, payload = data[len(head) :][:32], data[len(head) + 32 :]
    if not data:
        raise DamagedError(f"{path}, which is empty")
    if not data.startswith(head):
        raise DamagedError(f"{path}, which is damaged, or of another kind or version than {kind!r}")
    if hashlib.sha256(payload).digest() != digest:
        raise DamagedError(f"{path}, which is damaged")
    return payload
