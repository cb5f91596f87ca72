"""Pictures of a run: who owns what, what was distilled, how it changed, how accuracy grew.

matplotlib is imported on first use and draws to files only, whole ones; names are drawn as they
are written, and no picture grows beyond a few million pixels. Whoever draws during a run does so
``skipping`` failures. Axes: ``n`` images, ``k`` classes, ``m`` clients, ``c h w`` one image.
"""

import io
import logging
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int, UInt8

from feddgm_flwr.core.images import THUMBNAIL, to_pictures
from feddgm_flwr.core.synthetic import SyntheticSet
from feddgm_flwr.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

MAX_ROWS = 12
"""Rows of the picture over rounds."""
MAX_COLUMNS = 10
"""Its columns."""
MAX_CLIENTS = 40
"""Clients in a picture; of more, some spread over all."""
MAX_CLASSES = 50
"""Its classes."""
MAX_ACROSS = 200
"""Small pictures side by side, all classes together."""
MAX_NAME = 40
"""Characters drawn of a name."""
TEXT: dict[str, Any] = {"fontsize": 8, "parse_math": False}
"""Names are drawn as they are written: a dollar sign begins no formula."""
SAVED = re.compile(r"round_(\d+)\.npz")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, which the colour-blind tell apart."""


@contextmanager
def skipping(picture: str) -> Iterator[None]:
    """Tell in one line why a picture is missing, and go on: no picture is worth a run."""
    try:
        yield
    except Exception as error:  # fonts, disks and numbers fail in any way
        words = " ".join(str(error).split())[:300] or "no reason given"
        logger.warning(
            "no %s: %s (%s); the run goes on without it", picture, words, type(error).__name__
        )


def draw_ownership(counts: Int[np.ndarray, "k m"], classes: Sequence[str], path: Path) -> None:
    """Draw how many images of each class each client owns."""
    shown_classes = _spread(counts.shape[0], MAX_CLASSES)
    clients = _spread(counts.shape[1], MAX_CLIENTS)
    told = _of(
        (len(clients), counts.shape[1], "clients"), (len(shown_classes), counts.shape[0], "classes")
    )
    of_class, totals = counts.sum(1)[shown_classes], counts.sum(0)[clients]
    counts = counts[np.ix_(shown_classes, clients)]
    rows, columns = counts.shape
    figure, axes = figure_of(1.6 + 0.55 * columns, 1.2 + 0.38 * rows)
    shares = counts / np.maximum(of_class, 1)[:, None]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for k in range(rows):
        for m in range(columns):
            if counts[k, m] and columns <= 30:
                shade = "white" if shares[k, m] > 0.55 else "#333333"
                axes.text(
                    m,
                    k,
                    str(counts[k, m]),
                    ha="center",
                    va="center",
                    color=shade,
                    fontsize=8,
                )
    names = [f"{m}\n({total})" for m, total in zip(clients, totals, strict=True)]
    axes.set_xticks(range(columns), names, fontsize=8)
    axes.set_yticks(range(rows), [_name(classes[k]) for k in shown_classes], **TEXT)
    axes.set_xlabel("client (images)")
    axes.set_ylabel("class")
    axes.set_title(
        f"Who owns what: images of each class at each client{told}", fontsize=10, parse_math=False
    )
    _frameless(axes)
    save_figure(figure, path)


def draw_round(
    folder: Path, server_round: int, images: SyntheticSet, classes: Sequence[str]
) -> Path:
    """Save and draw what a round distilled, and how that changed since the first round.

    Returns
    -------
    Path
        Of the round's picture.
    """
    stem = f"round_{server_round:03d}"
    save_images(images, folder / f"{stem}.npz")
    draw_grid(
        images,
        classes,
        folder / f"{stem}.png",
        title=f"Distilled images after round {server_round}",
    )
    draw_over_rounds(folder, classes, folder / "over_rounds.png")
    return folder / f"{stem}.png"


def owner_name(owner: int) -> str:
    """Return whose images they are, in words; an aggregate's are all clients'."""
    return f"client {owner}" if owner >= 0 else "all clients"


def draw_grid(images: SyntheticSet, classes: Sequence[str], path: Path, *, title: str) -> None:
    """Draw distilled images, a row a client and a column a class."""
    owners, labels = images.owner.numpy(), images.targets.argmax(1).numpy()
    everyone = sorted(set(owners.tolist()))
    rows = [everyone[i] for i in _spread(len(everyone), MAX_CLIENTS)]
    columns = _spread(len(classes), MAX_CLASSES)
    cells = {
        (row, column): np.flatnonzero((owners == owner) & (labels == label))
        for row, owner in enumerate(rows)
        for column, label in enumerate(columns)
    }
    most = max(map(len, cells.values()), default=1)
    across = min(most, max(1, MAX_ACROSS // max(1, len(columns))))
    told = _of(
        (len(rows), len(everyone), "clients"),
        (len(columns), len(classes), "classes"),
        (across, most, "images a class"),
    )
    chosen = {
        cell: list(to_pictures(images.images[indices[:across]]))
        for cell, indices in cells.items()
        if len(indices)
    }
    draw_table(
        chosen,
        [owner_name(owner) for owner in rows],
        [classes[label] for label in columns],
        path,
        title=title + told,
        across=across,
    )


def draw_over_rounds(folder: Path, classes: Sequence[str], path: Path) -> None:
    """Draw how a few distilled images changed over the rounds saved in ``folder``."""
    saved = _saved_rounds(folder)
    read = [(n, _arrays(file)) for n, file in (saved[i] for i in _spread(len(saved), MAX_COLUMNS))]
    rounds = [arrays for _, arrays in read if arrays]
    pairs = sorted({pair for r in rounds for pair in _pairs(r)}, key=lambda p: (p[1], p[0]))
    pairs = [pairs[i] for i in _spread(len(pairs), MAX_ROWS)]
    cells: dict[tuple[int, int], list[UInt8[np.ndarray, "h w c"]]] = {}
    for column, saved_round in enumerate(rounds):
        for row, (owner, label) in enumerate(pairs):
            found = np.flatnonzero(
                (saved_round["owner"] == owner) & (saved_round["label"] == label)
            )
            if len(found):
                cells[row, column] = [saved_round["images"][found[0]]]
    names = [f"{owner_name(owner)}, class {classes[label]}" for owner, label in pairs]
    columns = [str(number) for number, arrays in read if arrays]
    title = "Distilled images, round by round"
    draw_table(cells, names, columns, path, title=title, across=1)


def _saved_rounds(folder: Path) -> list[tuple[int, Path]]:
    """Return the rounds saved in ``folder`` by number: as names, 1000 comes before 999."""
    found = [(SAVED.fullmatch(file.name), file) for file in folder.glob("round_*.npz")]
    return sorted((int(match[1]), file) for match, file in found if match)


def _arrays(file: Path) -> dict[str, np.ndarray]:
    """Return a round's arrays; none where a crash has cut the file, for one column is missed."""
    try:
        with np.load(file) as arrays:
            return dict(arrays)
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error):
        return {}


def save_images(images: SyntheticSet, path: Path) -> None:
    """Write a round's images as an ``.npz`` of uint8 images, labels and owners."""
    file = io.BytesIO()
    np.savez_compressed(
        file,
        images=to_pictures(images.images),
        label=images.targets.argmax(1).numpy(),
        owner=images.owner.numpy(),
    )
    write_atomically(path, file.getvalue())


def draw_accuracy(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw accuracy by round, a line a model and run, and the generator-only control."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure, axes = figure_of(7.0, 4.2)
    for index, (name, points) in enumerate(curves(results).items()):
        rounds, values = zip(*points, strict=True)
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(
            rounds,
            values,
            marker="o",
            markersize=4,
            linewidth=1.8,
            color=colour,
            label=name,
        )
    for result, own in zip(results, apart(results), strict=True):
        control = result["generator_only"].get("accuracy", {}).get("surrogate")
        if control is not None:
            name = "".join(["prior alone, no client", *own])
            axes.axhline(control, color="#888888", linestyle="--", linewidth=1.2, label=name)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("round")
    axes.set_ylabel("test accuracy")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        for text in axes.legend(frameon=False, fontsize=9).get_texts():
            text.set_parse_math(False)
    axes.set_title(", ".join(shared(results)), fontsize=10, parse_math=False)
    save_figure(figure, path)


def facts(result: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return in words which data a run had, for how many clients, and how they were divided."""
    alpha = "" if result["alpha"] is None else f" {result['alpha']:g}"
    return result["dataset"], f"{result['clients']} clients", f"{result['partition']}{alpha}"


def shared(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the facts that are the same in all runs."""
    return [each[0] for each in zip(*map(facts, results), strict=True) if len(set(each)) == 1]


def apart(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return of each run the facts that are not, each with the comma before it."""
    same = shared(results)
    return [[f", {fact}" for fact in facts(r) if fact not in same] for r in results]


def curves(results: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Return line name -> (round, accuracy) points.

    A name says what of the experiment is not the same in all, and is made unique by seed, then
    number.
    """
    lines: dict[str, list[tuple[int, float]]] = {}
    methods = [r["method"] for r in results]
    for result, own in zip(results, apart(results), strict=True):
        points: dict[str, list[tuple[int, float]]] = {}
        for done in result["rounds"]:
            for model, value in done["accuracy"].items():
                points.setdefault(model, []).append((done["round"], value))
        for model, line in points.items():
            name = "".join([f"{result['method']}, {model}", *own])
            if methods.count(result["method"]) > 1:
                name += f", seed {result['seed']}"
            unique, number = name, 2
            while unique in lines:
                unique, number = f"{name} ({number})", number + 1
            lines[unique] = line
    return lines


def _pairs(saved_round: Mapping[str, Any]) -> set[tuple[int, int]]:
    """Return one (owner, label) for each label: its first owner's."""
    first: dict[int, int] = {}
    for owner, label in zip(saved_round["owner"], saved_round["label"], strict=True):
        first[int(label)] = min(int(owner), first.get(int(label), int(owner)))
    return {(owner, label) for label, owner in first.items()}


def _spread(n: int, at_most: int) -> list[int]:
    """Return up to ``at_most`` indices spread over 0..n-1, both ends among them."""
    return sorted(set(np.linspace(0, n - 1, min(n, at_most)).round().astype(int).tolist()))


def _of(*parts: tuple[int, int, str]) -> str:
    """Return which (shown, all, what) is not shown whole, as an end of a title."""
    said = [f"{shown} of {of_all} {what}" for shown, of_all, what in parts if shown < of_all]
    return f" ({', '.join(said)})" if said else ""


def _name(text: str) -> str:
    return text if len(text) <= MAX_NAME else text[: MAX_NAME - 3] + "..."


def draw_table(
    cells: Mapping[tuple[int, int], Sequence[UInt8[np.ndarray, "h w c"]]],
    rows: Sequence[str],
    columns: Sequence[str],
    path: Path,
    *,
    title: str,
    across: int,
) -> None:
    """Draw a table whose cells hold up to ``across`` small pictures side by side."""
    if not cells:
        return
    step = -(-next(iter(cells.values()))[0].shape[0] // THUMBNAIL)
    size = next(iter(cells.values()))[0][::step].shape[0]
    gap = max(1, size // 8)
    wide, high = across * (size + 1) + gap, size + gap
    # One mosaic, drawn once: an axes a picture would take seconds.
    mosaic = np.full((len(rows) * high, len(columns) * wide, 3), 255, np.uint8)
    for (row, column), pictures in cells.items():
        for i, picture in enumerate(pictures[:across]):
            y, x = row * high, column * wide + i * (size + 1)
            mosaic[y : y + size, x : x + size] = picture[::step, ::step]
    inch = 0.42 / size
    figure, axes = figure_of(mosaic.shape[1] * inch + 1.5, mosaic.shape[0] * inch + 0.8)
    axes.imshow(mosaic, interpolation="nearest")
    centre = (across * (size + 1)) / 2
    # Names wider than their columns would run into each other.
    longest = max((len(_name(c)) for c in columns), default=0)
    slant: dict[str, Any] = {"rotation": 45, "ha": "left"} if longest > 6 * across + 1 else {}
    ticks = [c * wide + centre for c in range(len(columns))]
    axes.set_xticks(ticks, list(map(_name, columns)), **TEXT, **slant)
    middles = [r * high + size / 2 for r in range(len(rows))]
    axes.set_yticks(middles, list(map(_name, rows)), **TEXT)
    axes.xaxis.tick_top()
    axes.set_title(title, fontsize=10, parse_math=False)
    _frameless(axes)
    save_figure(figure, path)


def figure_of(width: float, height: float) -> "tuple[Figure, Axes]":
    """Return a figure that belongs to no window and no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110)
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _frameless(axes: "Axes") -> None:
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def save_figure(figure: "Figure", path: Path) -> None:
    """Write ``figure`` as a PNG, whole."""
    import matplotlib

    file = io.BytesIO()
    # A font without a letter warns, and a user's own style may want LaTeX.
    with warnings.catch_warnings(), matplotlib.rc_context({"text.usetex": False}):
        warnings.simplefilter("ignore")
        figure.savefig(file, format="png", bbox_inches="tight", facecolor="white")
    write_atomically(path, file.getvalue())
