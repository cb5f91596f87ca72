"""Pictures for a page: a round's images as one sprite, and those of each client as they grow.

A sprite is a PNG of equal square cells without text, so that a page can show any part of it; the
events beside it say what each cell is. Files are whole or absent, their number and size bounded;
whoever draws during a run does so ``plots.skipping`` failures. Axes: ``n`` images, ``h w c`` one
image.
"""

import io
import logging
import math
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from feddgm_flwr.core.distillation.glimpse import Glimpse
from feddgm_flwr.core.images import thumbnails
from feddgm_flwr.core.synthetic import SyntheticSet
from feddgm_flwr.events import Emit, GrowthWritten, SpriteWritten
from feddgm_flwr.files import write_atomically
from feddgm_flwr.monitoring.plots import skipping

logger = logging.getLogger(__name__)


class Sprites:
    """Draws them into a run folder, and tells where they are.

    Where one client's growing images cannot be drawn, no others are tried in that round.

    Parameters
    ----------
    images
        Images of a round in its sprite, at most.
    room_mb
        What all of the folder's sprites may take on the disk.
    """

    def __init__(self, folder: Path, emit: Emit, *, images: int, room_mb: float) -> None:
        self._folder, self._emit, self._images = folder, emit, images
        self._room = Room(folder, room_mb)
        self._growing: tuple[int, dict[int, dict[int, Glimpse]]] = (0, {})
        self._given_up = 0

    def draw(self, server_round: int, fresh: SyntheticSet) -> None:
        """Draw a round's images."""
        labels = fresh.targets.argmax(1).numpy()
        chosen = spread(fresh.owner.numpy(), labels, self._images)
        if not len(chosen):
            return
        path = Path("images") / f"sprite_{server_round:04d}.png"
        with skipping(str(path)):
            pictures = thumbnails(fresh.images[chosen])
            across = math.ceil(math.sqrt(len(chosen)))
            if not self._room.write(path, sheet(pictures, across)):
                return
            self._emit(
                SpriteWritten(
                    round=server_round,
                    path=str(path),
                    side=pictures.shape[1],
                    across=across,
                    owners=tuple(fresh.owner[chosen].tolist()),
                    labels=tuple(labels[chosen].tolist()),
                    weights=tuple(round(w, 4) for w in fresh.weights[chosen].tolist()),
                    num_images=len(fresh),
                )
            )

    def show(self, server_round: int, partition_id: int, seen: Glimpse) -> None:
        """Draw a client's images as they are now below those of before in this round."""
        if self._given_up == server_round:
            return
        if self._growing[0] != server_round:
            self._growing = server_round, {}
        moments = self._growing[1].setdefault(partition_id, {})
        # A client that is distilled anew passes the same moments again.
        moments[seen.iteration] = seen
        rows = [moments[i] for i in sorted(moments) if moments[i].labels == seen.labels]
        path = Path("images") / f"growth_{server_round:04d}_{partition_id}.png"
        # Until this one is written: a full disk is told once a round, not of every client.
        self._given_up = server_round
        with skipping(str(path)):
            pictures = np.concatenate([row.pictures for row in rows])
            wrote = self._room.write(path, sheet(pictures, len(seen.labels)))
            self._given_up = 0
            if not wrote:
                return
            self._emit(
                GrowthWritten(
                    round=server_round,
                    path=str(path),
                    side=pictures.shape[1],
                    partition_id=partition_id,
                    labels=seen.labels,
                    iterations=tuple(row.iteration for row in rows),
                )
            )


class Room:
    """What is left of the place for sprites in a run folder."""

    def __init__(self, folder: Path, mb: float) -> None:
        self._folder, self._bytes = folder, mb * 1e6
        kinds = ("sprite_*.png", "growth_*.png")
        found = (file for kind in kinds for file in (folder / "images").glob(kind))
        self._sizes = {str(file.relative_to(folder)): file.stat().st_size for file in found}
        self._full = False

    def write(self, path: Path, data: bytes) -> bool:
        """Write a file of the folder, and return whether there was room for it."""
        others = sum(size for name, size in self._sizes.items() if name != str(path))
        if others + len(data) > self._bytes:
            if not self._full:
                logger.warning(
                    "no more sprites: those of this run take watch.pictures-mb = %g; raise it to "
                    "see more",
                    self._bytes / 1e6,
                )
            self._full = True
            return False
        write_atomically(self._folder / path, data)
        self._sizes[str(path)] = len(data)
        return True


def spread(
    owners: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], at_most: int
) -> Int[np.ndarray, " m"]:
    """Return up to ``at_most`` places by owner and label, the first image of each pair first."""
    seen: dict[tuple[int, int], int] = {}
    turns = []
    for index, pair in enumerate(zip(owners.tolist(), labels.tolist(), strict=True)):
        seen[pair] = seen.get(pair, 0) + 1
        turns.append((seen[pair], index))
    chosen = [index for _, index in sorted(turns)]
    if len(chosen) > at_most:
        # Of the first images of all pairs, if even they are too many, some of every client.
        first = sum(turn == 1 for turn, _ in turns)
        kept = chosen[: max(first, at_most)]
        picked = np.linspace(0, len(kept) - 1, at_most).round().astype(int)
        chosen = [kept[i] for i in picked]
    order = sorted(chosen, key=lambda i: (owners[i], labels[i], i))
    return np.array(order, dtype=np.int64)


def sheet(pictures: UInt8[np.ndarray, "n h w c"], across: int) -> bytes:
    """Return ``pictures`` as one PNG, ``across`` in a row; the rest of the last row is black."""
    from PIL import Image

    count, side, _, channels = pictures.shape
    down = -(-count // across)
    cells = np.zeros((down * across, side, side, channels), np.uint8)
    cells[:count] = pictures
    table = cells.reshape(down, across, side, side, channels).transpose(0, 2, 1, 3, 4)
    flat = table.reshape(down * side, across * side, channels)
    file = io.BytesIO()
    Image.fromarray(flat if channels == 3 else flat[..., 0]).save(file, "PNG")
    return file.getvalue()
