"""Names of classes and of files, which are not always what they seem.

One name may be spelt in several bytes (an accent composed or not, blanks, capitals), and systems
leave files of their own everywhere. Knows no picture; of a disk only how to list it.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

SYSTEM = frozenset(
    {
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
        *("__macosx", "icon\r", "@eadir", "lost+found"),
    }
)
"""Files and folders that operating systems leave among one's own, in small letters."""
LONGEST = 255
"""Bytes in the name of a folder, on every common file system."""


def plain(name: str) -> str:
    """Return ``name`` composed (NFC), without blanks around it and with single ones within."""
    return " ".join(unicodedata.normalize("NFC", name).split())


def loose(name: str) -> str:
    """Return what is left of ``name`` where capitals do not count either."""
    return plain(plain(name).casefold())


def is_skipped(name: str) -> bool:
    """Whether a file or folder is hidden, or the system's own: ``._0.png``, ``Thumbs.db``."""
    return name.startswith(".") or name.lower() in SYSTEM


def wrong_names(names: Sequence[str]) -> str:
    """Return what keeps ``names`` from being classes, or ""."""
    if repeated := sorted(n for n, count in Counter(map(plain, names)).items() if count > 1):
        return f"name each class once, but {repeated} come twice"
    return next((said for name in names if (said := wrong_name(name))), "")


def wrong_name(name: str) -> str:
    """Return what keeps ``name`` from being a class's name and its folder's, or ""."""
    if not name:
        return "hold no empty name"
    if "/" in name or "," in name:
        return f"hold no slash and no comma within a name, but {name!r} does"
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name):
        return f"hold no line break or control character, but {name!r} does"
    if is_skipped(name):
        return f"hold no name of a hidden or system folder, which is never read, but {name!r} is"
    if len(name.encode()) > LONGEST:
        return f"hold names of at most {LONGEST} bytes, but {name[:20]!r}... has more"
    return ""


@dataclass(frozen=True)
class Matched:
    """Which folder holds which class.

    Attributes
    ----------
    folders
        Class -> its folder; a class may lack.
    problems
        Sentences about folders that are of no class, or of one that has another folder.
    """

    folders: dict[str, Path]
    problems: list[str]


def match(folders: Iterable[Path], classes: Sequence[str], remedy: str) -> Matched:
    """Give each folder to the class that it names; spelling counts only where it must.

    Parameters
    ----------
    remedy
        What to do about a folder of no class.
    """
    found: dict[str, list[Path]] = {}
    unknown = []
    for folder in sorted(folders):
        name = _class_of(folder.name, classes)
        if name is None:
            unknown.append(folder)
        else:
            found.setdefault(name, []).append(folder)
    problems = [
        f"folders {[f.name for f in same]} of {str(same[0].parent)!r} are both of the class "
        f"{name!r}, since accents, blanks and capitals do not tell them apart; put their "
        "pictures into one"
        for name, same in found.items()
        if len(same) > 1
    ]
    if unknown:
        problems.append(
            f"folders of {str(unknown[0].parent)!r} must be of the classes {tuple(classes)}, got "
            f"{[f.name for f in unknown]}; {remedy}"
        )
    return Matched({name: same[0] for name, same in found.items()}, problems)


def _class_of(name: str, classes: Sequence[str]) -> str | None:
    """Return the one class that ``name`` is the name of, in the strictest reading that has one."""
    if name in classes:
        return name
    for reading in (plain, loose):
        same = [c for c in classes if reading(c) == reading(name)]
        if len(same) == 1:
            return same[0]
    return None


def folders_in(home: Path) -> list[Path]:
    """Return the folders in ``home``, but hidden and system ones."""
    return sorted(f for f in home.iterdir() if not is_skipped(f.name) and f.is_dir())


def files_under(folder: Path) -> list[Path]:
    """Return all files in ``folder`` and its own folders, but hidden and system ones.

    A link to a folder is listed, not followed: it could lead round in a circle.

    Raises
    ------
    OSError
        A folder cannot be listed.
    """

    def stop(error: OSError) -> None:
        raise error

    files = []
    for home, inner, names in os.walk(folder, onerror=stop):
        links = [n for n in inner if (Path(home) / n).is_symlink()]
        inner[:] = [n for n in inner if not is_skipped(n)]
        files += [Path(home) / n for n in (*names, *links) if not is_skipped(n)]
    return sorted(files)
