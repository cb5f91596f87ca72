"""``feddgm-check``: says what a client would see in a folder or an ``.npz``, and what it refuses.

Reads with the client's own functions, so that what is said is what will happen, but goes on after
a fault. Knows no run: of its settings only class names, side and channels. Imports no Flower.
"""

import argparse
import hashlib
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from feddgm_flwr.data.names import folders_in, plain, wrong_names
from feddgm_flwr.data.own import (
    DEVICE,
    Source,
    channels_last,
    classes_in,
    layout_of,
    npz_arrays,
    npz_problems,
    pictures_of,
    read_npz,
)
from feddgm_flwr.data.pictures import PictureError, read_picture

PARTS = ("train", "test")
SIZE = 32
"""Side where none is said and the data have none of their own."""
SHOWN = 6
"""Pictures of a class and part on the sheet."""
ROWS = 100
"""Classes in the table and on the sheet, at most."""
MOST_CLASSES = 1000
"""Classes that an ``.npz`` is taken to have where its owner names none, at most."""


@dataclass
class Seen:
    """What was found in one part.

    Attributes
    ----------
    there
        Whether the part exists.
    names
        What each image is called.
    hashes
        Of each image's content.
    shown
        Class -> the first few images.
    flat
        Names of images of a single colour.
    problems
        What a client would refuse, in sentences.
    notes
        What it takes otherwise than its owner may think.
    """

    there: bool = True
    labels: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    modes: Counter[str] = field(default_factory=Counter)
    flat: list[str] = field(default_factory=list)
    shown: dict[int, list[UInt8[np.ndarray, "h w c"]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(
        self, name: str, label: int, pixels: UInt8[np.ndarray, "h w c"], content: bytes
    ) -> None:
        """Note an image that a client would take."""
        self.labels.append(label)
        self.names.append(name)
        self.hashes.append(hashlib.sha256(content).digest())
        if pixels.min() == pixels.max():
            self.flat.append(name)
        some = self.shown.setdefault(label, [])
        if len(some) < SHOWN:
            some.append(pixels)

    @property
    def usable(self) -> bool:
        """Whether a client would take this part: it refuses a part for one fault in it."""
        return bool(self.labels) and not self.problems


def look(source: Source) -> dict[str, Seen]:
    """Return what a client would see in each part."""
    seen_in = look_at_npz if layout_of(source.path) == "npz" else look_at_folder
    return {part: seen_in(source, part) for part in PARTS}


def look_at_folder(source: Source, part: str) -> Seen:
    """Return what a client would see in a part of a folder, every fault in it."""
    seen = Seen()
    try:
        matched = classes_in(source, part)
        files = pictures_of(matched, source.classes)
    except FileNotFoundError as error:
        return Seen(there=False, problems=[str(error)])
    except ValueError as error:
        return Seen(problems=[str(error)])
    seen.problems += matched.problems
    seen.notes += [
        f"folder {folder.name!r} is taken for the class {name!r}"
        for name, folder in matched.folders.items()
        if folder.name != name
    ]
    for file, label in _with_progress(files, part):
        try:
            picture = read_picture(file, channels=source.channels, size=source.size)
            content = file.read_bytes()
        except (PictureError, OSError) as error:
            seen.problems.append(str(error))
            continue
        seen.add(str(file), label, picture.pixels, content)
        seen.sizes.append((picture.width, picture.height))
        seen.modes[picture.mode] += 1
    return seen


def look_at_npz(source: Source, part: str) -> Seen:
    """Return what a client would see in a part of an ``.npz``."""
    seen = Seen()
    try:
        arrays, missing = npz_arrays(source, part)
    except ValueError as error:
        return Seen(problems=[str(error)])
    if missing:
        return Seen(there=bool(arrays), problems=[missing])
    seen.problems = npz_problems(source, *arrays)
    if seen.problems:
        return seen
    images, labels = read_npz(source, part)
    raw = channels_last(arrays[0])
    for i, label in enumerate(labels.tolist()):
        pixels = images[i].transpose(1, 2, 0)
        seen.add(f"{part} image {i}", label, pixels, raw[i].tobytes())
    seen.sizes = [(raw.shape[2], raw.shape[1])] * len(raw)
    seen.modes[f"{raw.dtype}, {'grey' if raw.shape[3] == 1 else 'colour'}"] = len(raw)
    return seen


def _with_progress(files: list[tuple[Path, int]], part: str) -> Iterator[tuple[Path, int]]:
    from tqdm import tqdm

    # Only where a person watches.
    yield from tqdm(files, desc=part, unit="picture", disable=None, leave=False)


def classes_of(path: Path) -> tuple[str, ...]:
    """Return the class names that the data themselves give: folders, or the labels' numbers.

    Raises
    ------
    ValueError
        Labels so high that they are hardly labels.
    """
    if layout_of(path) == "npz":
        highest = _highest_label(path)
        if highest >= MOST_CLASSES:
            raise ValueError(
                f"labels of {str(path)!r} must be 0 to {MOST_CLASSES - 1} unless --classes names "
                f"the classes, got {highest}; correct them or say --classes"
            )
        return tuple(map(str, range(highest + 1)))
    homes = (path / part for part in PARTS)
    try:
        found = {plain(f.name) for home in homes if home.is_dir() for f in folders_in(home)}
    except OSError:
        return ()
    return tuple(sorted(found))


def _highest_label(path: Path) -> int:
    highest = 0
    for part in PARTS:
        try:
            arrays, missing = npz_arrays(Source(path, (), 1, SIZE, DEVICE), part)
        except ValueError:
            continue
        if not missing and arrays[1].dtype.kind in "iu" and arrays[1].size:
            highest = max(highest, int(arrays[1].max()))
    return highest


def form_of(path: Path) -> tuple[int, int]:
    """Return channels and side that the data themselves have; colour and 32 for pictures."""
    if layout_of(path) == "npz":
        try:
            arrays, _ = npz_arrays(Source(path, (), 1, SIZE, DEVICE), "train")
        except ValueError:
            return 3, SIZE
        images = channels_last(arrays[0]) if arrays else np.empty(0)
        if images.ndim == 4 and images.shape[3] in (1, 3) and images.shape[1]:
            return images.shape[3], images.shape[1]
    return 3, SIZE


def report(source: Source, parts: dict[str, Seen], *, assumed: Sequence[str] = ()) -> str:
    """Return in plain words what was seen.

    Parameters
    ----------
    assumed
        What was not said on the command line and may be otherwise in the run.
    """
    colour = "grey" if source.channels == 1 else "colour"
    lines = [
        f"{str(source.path)!r} read as a client would, at {source.size} x {source.size} {colour}."
    ]
    if assumed:
        lines.append(
            f"You did not say {' or '.join(assumed)}, so the data's own were taken; ask the run's "
            "owner for its."
        )
    for part, seen in parts.items():
        lines += ["", *_of_part(part, seen)]
    lines += ["", *_of_classes(source.classes, parts)]
    lines += _of_copies(parts)
    for part, seen in parts.items():
        if seen.problems and seen.there:
            lines += ["", f"A client would refuse its {part} data for these faults:"]
            lines += [f"  {said}" for said in seen.problems]
    return "\n".join([*lines, "", _verdict(parts)])


def _of_part(part: str, seen: Seen) -> list[str]:
    if not seen.there:
        return [f"{part}: not there. {seen.problems[0]}"]
    lines = [f"{part}: {_count(len(seen.labels), 'image')}, {_count(len(seen.problems), 'fault')}"]
    if seen.sizes:
        ordered = sorted(seen.sizes, key=lambda s: s[0] * s[1])
        small, middle, large = ordered[0], ordered[len(ordered) // 2], ordered[-1]
        said = [f"{w} x {h}" for w, h in (small, middle, large)]
        lines.append(f"  sizes: smallest {said[0]}, median {said[1]}, largest {said[2]} pixels")
        modes = ", ".join(f"{mode} ({count})" for mode, count in seen.modes.most_common())
        lines.append(f"  kinds: {modes}")
    lines += [f"  {note}" for note in seen.notes]
    if seen.flat:
        lines.append(
            f"  {_count(len(seen.flat), 'image')} of one single colour, such as {seen.flat[0]!r}"
        )
    return lines


def _of_classes(classes: Sequence[str], parts: dict[str, Seen]) -> list[str]:
    """Return a table of images, a row a class; classes beyond ``ROWS`` are counted together."""
    counts = {part: Counter(seen.labels) for part, seen in parts.items()}
    head = ["class", *parts]
    rows = [
        [name, *(str(counts[part][label]) for part in parts)]
        for label, name in enumerate(classes[:ROWS])
    ]
    if len(classes) > ROWS:
        rest = [sum(n for label, n in counts[part].items() if label >= ROWS) for part in parts]
        rows.append([f"({len(classes) - ROWS} more)", *map(str, rest)])
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in [head, *rows]
    ]


def _of_copies(parts: dict[str, Seen]) -> list[str]:
    """Return what is there twice: it counts double, belies a test, or has two labels."""
    of_hash: dict[bytes, list[tuple[str, int, str]]] = {}
    for part, seen in parts.items():
        for content, label, name in zip(seen.hashes, seen.labels, seen.names, strict=True):
            of_hash.setdefault(content, []).append((part, label, name))
    groups = [same for same in of_hash.values() if len(same) > 1]
    if not groups:
        return []
    lines = ["", f"Copies: {_count(len(groups), 'image')} there more than once"]
    across = [g for g in groups if len({part for part, _, _ in g}) > 1]
    torn = [g for g in groups if len({label for _, label, _ in g}) > 1]
    for some, what in ((across, "in train and in test"), (torn, "under two classes")):
        if some:
            names = " and ".join(repr(name) for _, _, name in some[0][:2])
            lines.append(f"  {len(some)} of them {what}, such as {names}")
    return lines


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _verdict(parts: dict[str, Seen]) -> str:
    if not parts["train"].usable:
        why = "there is no train image" if not parts["train"].labels else "see the faults above"
        return f"A client could NOT train on these data: {why}."
    if parts["test"].usable:
        return "A client could train and be tested on these data."
    return "A client could train on these data, but not be tested on them."


def draw_sheet(source: Source, parts: dict[str, Seen], path: Path) -> None:
    """Draw the first few images of every class under their labels, as a client gets them."""
    from feddgm_flwr.monitoring.plots import draw_table

    there = [(part, seen) for part, seen in parts.items() if seen.shown]
    known = sorted({label for _, seen in there for label in seen.shown})[:ROWS]
    cells = {
        (row, column): seen.shown[label]
        for row, label in enumerate(known)
        for column, (_, seen) in enumerate(there)
        if label in seen.shown
    }
    more = len({label for _, seen in there for label in seen.shown}) - len(known)
    draw_table(
        cells,
        [f"{label}: {source.classes[label]}" for label in known],
        [part for part, _ in there],
        path,
        title=f"{source.path.name}{f' (and {more} classes more)' if more else ''}",
        across=SHOWN,
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command's options."""
    parser = argparse.ArgumentParser(
        prog="feddgm-check",
        description="Say what a client would see in DATA, and everything that it would refuse.",
    )
    parser.add_argument(
        "data", type=Path, help="a device's folder with train/<class>/*, or its .npz file"
    )
    parser.add_argument(
        "--classes", help="the run's class names a,b,c in label order; else those of the data"
    )
    parser.add_argument("--size", type=int, help="the run's side in pixels")
    parser.add_argument("--channels", type=int, choices=(1, 3), help="the run's: grey or colour")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="draw some images of each class")
    options = parser.parse_args(arguments)
    if options.size is not None and not 8 <= options.size <= 1024:
        parser.error(f"--size must be from 8 to 1024, got {options.size}; correct it")
    if options.classes is not None:
        names = [plain(n) for n in options.classes.split(",") if n.strip()]
        said = wrong_names(names) if names else "name one class or more"
        if said:
            parser.error(f"--classes must {said}; correct it")
    return options


def source_of(options: argparse.Namespace) -> Source:
    """Return what the options say is to be read, and how."""
    path = options.data.absolute()
    channels, size = form_of(path)
    given = options.classes
    classes = (
        classes_of(path)
        if given is None
        else tuple(plain(n) for n in given.split(",") if n.strip())
    )
    return Source(path, classes, options.channels or channels, options.size or size, DEVICE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 where a client could train."""
    options = parse(arguments)
    # A name that the terminal cannot show must not end the check.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        options.data.stat()
    except OSError as error:
        sys.stdout.write(
            f"{str(options.data)!r} must be there to be read, got: {error.strerror}; correct it\n"
        )
        return 1
    try:
        source = source_of(options)
    except ValueError as error:
        sys.stdout.write(f"{error}\n")
        return 1
    parts = look(source)
    if options.classes is None and (said := wrong_names(source.classes)):
        parts["train"].problems.append(f"class names must {said}; rename the folder")
    assumed = [f"--{o}" for o in ("classes", "size", "channels") if getattr(options, o) is None]
    sys.stdout.write(report(source, parts, assumed=assumed) + "\n")
    if options.sheet and any(seen.shown for seen in parts.values()):
        try:
            draw_sheet(source, parts, options.sheet)
            sys.stdout.write(f"drawn: {options.sheet}\n")
        except Exception as error:  # a sheet that cannot be drawn says nothing of the data
            sys.stdout.write(f"no sheet at {str(options.sheet)!r}: {error}; name another file\n")
    return 0 if parts["train"].usable else 1


if __name__ == "__main__":
    sys.exit(main())
