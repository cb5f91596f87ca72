"""Pictures of a run: who owns what, what was distilled, how it changed, how accuracy grew.

matplotlib is imported on first use and draws to files only. Axes: ``n`` images, ``k`` classes,
``m`` clients, ``c h w`` one image.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from feddgm_flwr.core.synthetic import SyntheticSet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_ROWS = 12
"""Rows of the picture over rounds."""
MAX_COLUMNS = 10
"""Its columns."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, which the colour-blind tell apart."""


def draw_ownership(counts: Int[np.ndarray, "k m"], classes: Sequence[str], path: Path) -> None:
    """Draw how many images of each class each client owns."""
    rows, columns = counts.shape
    figure, axes = _figure(1.6 + 0.55 * columns, 1.2 + 0.38 * rows)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
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
    totals = counts.sum(0)
    names = [f"{m}\n({totals[m]})" for m in range(columns)]
    axes.set_xticks(range(columns), names, fontsize=8)
    axes.set_yticks(range(rows), list(classes), fontsize=8)
    axes.set_xlabel("client (images)")
    axes.set_ylabel("class")
    axes.set_title("Who owns what: images of each class at each client", fontsize=10)
    _frameless(axes)
    _save(figure, path)


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


def draw_grid(images: SyntheticSet, classes: Sequence[str], path: Path, *, title: str) -> None:
    """Draw distilled images, a row a client and a column a class."""
    owners, labels = images.owner.numpy(), images.targets.argmax(1).numpy()
    rows = sorted(set(owners.tolist()))
    cells = {
        (row, k): np.flatnonzero((owners == owner) & (labels == k))
        for row, owner in enumerate(rows)
        for k in range(len(classes))
    }
    across = max(map(len, cells.values()), default=1)
    pictures = to_pictures(images.images)
    names = [f"client {owner}" for owner in rows]
    chosen = {
        cell: [pictures[i] for i in indices] for cell, indices in cells.items() if len(indices)
    }
    _draw_cells(chosen, names, classes, path, title=title, across=across)


def draw_over_rounds(folder: Path, classes: Sequence[str], path: Path) -> None:
    """Draw how a few distilled images changed over the rounds saved in ``folder``."""
    saved = sorted(folder.glob("round_*.npz"))
    if not saved:
        return
    picked = [saved[i] for i in _spread(len(saved), MAX_COLUMNS)]
    rounds = [dict(np.load(file)) for file in picked]
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
    names = [f"client {owner}: {classes[label]}" for owner, label in pairs]
    columns = [str(int(file.stem.split("_")[1])) for file in picked]
    title = "Distilled images, round by round"
    _draw_cells(cells, names, columns, path, title=title, across=1)


def save_images(images: SyntheticSet, path: Path) -> None:
    """Write a round's images as an ``.npz`` of uint8 images, labels and owners."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        images=to_pictures(images.images),
        label=images.targets.argmax(1).numpy(),
        owner=images.owner.numpy(),
    )


def draw_accuracy(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw accuracy by round, a line a model and run, and the generator-only control."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure, axes = _figure(7.0, 4.2)
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
    for result in results:
        control = result["generator_only"].get("accuracy", {}).get("surrogate")
        if control is not None:
            axes.axhline(
                control,
                color="#888888",
                linestyle="--",
                linewidth=1.2,
                label="prior alone, no client",
            )
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("round")
    axes.set_ylabel("test accuracy")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=9)
    first = results[0]
    alpha = "" if first["alpha"] is None else f" {first['alpha']:g}"
    axes.set_title(
        f"{first['dataset']}, {first['clients']} clients, {first['partition']}{alpha}",
        fontsize=10,
    )
    _save(figure, path)


def curves(results: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Return line name -> (round, accuracy) points, names made unique by seed, then number."""
    lines: dict[str, list[tuple[int, float]]] = {}
    methods = [r["method"] for r in results]
    for result in results:
        points: dict[str, list[tuple[int, float]]] = {}
        for done in result["rounds"]:
            for model, value in done["accuracy"].items():
                points.setdefault(model, []).append((done["round"], value))
        for model, line in points.items():
            name = f"{result['method']}, {model}"
            if methods.count(result["method"]) > 1:
                name += f", seed {result['seed']}"
            unique, number = name, 2
            while unique in lines:
                unique, number = f"{name} ({number})", number + 1
            lines[unique] = line
    return lines


def to_pictures(images: Float[Tensor, "n c h w"]) -> UInt8[np.ndarray, "n h w c"]:
    """Return images as bytes, colours last."""
    return (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def _pairs(saved_round: Mapping[str, Any]) -> set[tuple[int, int]]:
    """Return one (owner, label) for each label: its first owner's."""
    first: dict[int, int] = {}
    for owner, label in zip(saved_round["owner"], saved_round["label"], strict=True):
        first[int(label)] = min(int(owner), first.get(int(label), int(owner)))
    return {(owner, label) for label, owner in first.items()}


def _spread(n: int, at_most: int) -> list[int]:
    """Return up to ``at_most`` indices spread over 0..n-1, both ends among them."""
    return sorted(set(np.linspace(0, n - 1, min(n, at_most)).round().astype(int).tolist()))


def _draw_cells(
    cells: Mapping[tuple[int, int], Sequence[Any]],
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
    size = next(iter(cells.values()))[0].shape[0]
    gap = max(1, size // 8)
    wide, high = across * (size + 1) + gap, size + gap
    # One mosaic, drawn once: an axes a picture would take seconds.
    mosaic = np.full((len(rows) * high, len(columns) * wide, 3), 255, np.uint8)
    for (row, column), pictures in cells.items():
        for i, picture in enumerate(pictures[:across]):
            y, x = row * high, column * wide + i * (size + 1)
            mosaic[y : y + size, x : x + size] = picture
    inch = 0.42 / size
    figure, axes = _figure(mosaic.shape[1] * inch + 1.5, mosaic.shape[0] * inch + 0.8)
    axes.imshow(mosaic, interpolation="nearest")
    centre = (across * (size + 1)) / 2
    axes.set_xticks([c * wide + centre for c in range(len(columns))], list(columns), fontsize=8)
    axes.set_yticks([r * high + size / 2 for r in range(len(rows))], list(rows), fontsize=8)
    axes.xaxis.tick_top()
    axes.set_title(title, fontsize=10)
    _frameless(axes)
    _save(figure, path)


def _figure(width: float, height: float) -> "tuple[Figure, Axes]":
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


def _save(figure: "Figure", path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", facecolor="white")
