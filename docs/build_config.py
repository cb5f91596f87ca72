"""Write docs/config.md, and the list of keys in pyproject.toml, from the declared settings.

Run ``python docs/build_config.py`` after changing a setting; a test compares.
"""

import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from feddgm_flwr import methods
from feddgm_flwr.config import RENAMED, Declared, RunConfig, sections, settings
from feddgm_flwr.core.settings import Scalar, Settings, about_of, key_of

ROOT = Path(__file__).resolve().parents[1]

TRY_FIRST = {
    "method": "against what to compare",
    "data.alpha": "how much the clients differ",
    "client.epochs": "how long they train",
    "distill.images-per-class": "how many images each gives",
    "global-model.names": "which larger models learn from them",
}
"""Key -> what it decides."""

HEAD = f"""# Every setting

Set them with `flwr run . --run-config "distill.iterations=50 seed=1"` or with a TOML file
(`conf/` has examples; what the README compares are presets of `benchmarks/compare.py`).
Where to begin:

{chr(10).join(f"- `{key}`: {what}" for key, what in TRY_FIRST.items())}

What holds of all:

- A key left at `"auto"`, as all are in `pyproject.toml`, takes the value of the recipe:
  `recipe = "feddgm"` (ours, the default) or `recipe = "paper"` (the authors' settings).
- An unknown key, a wrong type, a value out of range and a value that another setting of its section
  leaves unread ("Read only under") end the run at once, with one sentence. What the chosen method
  does not read is named in the log.
- "resume" marks what a resumed run may change.

<!-- Written by docs/build_config.py; change the declaration beside what it configures instead. -->
"""

BEGIN = "# Every key is described in docs/config.md, whose script writes this list too.\n"
END = "\n[tool.ruff]\n"


def toml(value: Scalar) -> str:
    """Return ``value`` as a config file says it."""
    return f"`{json.dumps(value)}`"


def type_name(declared: Declared) -> str:
    """Return how a reader writes the type and the bounds."""
    if get_origin(declared.hint) is Literal:
        return ", ".join(map(toml, get_args(declared.hint)))
    return ", ".join(filter(None, (declared.hint.__name__, declared.about.expected)))


def row(key: str, declared: Declared) -> str:
    """Return a key's line of its table."""
    about = declared.about
    paper = "" if about.paper is None else toml(about.paper)
    under = "".join(
        f" Read only under `{switch}` = {' or '.join(map(toml, values))}."
        for switch, values in declared.only.items()
    )
    resume = "yes" if about.may_differ else ""
    cells = (
        f"`{key}`",
        type_name(declared),
        toml(declared.default),
        paper,
        resume,
        about.meaning + under,
    )
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def about_section(section: type[Settings]) -> str:
    """Return what a section is for, and the methods whose own it is."""
    first = (section.__doc__ or "").splitlines()[0]
    readers = [name for name in methods.names() if section in methods.registered(name).settings]
    return first + (f" Read by {', '.join(f'`{name}`' for name in readers)}." if readers else "")


def page() -> str:
    """Return the whole page."""
    known = settings()
    parts = [HEAD]
    for section in sections():
        parts.append(f"## {section.section or 'The run'}\n\n{about_section(section)}\n")
        parts.append("| key | type | `feddgm` | `paper`, if other | resume | what it does |")
        parts.append("|---|---|---|---|---|---|")
        keys = [key_of(section, name) for name in about_of(section)]
        parts.extend([*(row(key, known[key]) for key in keys), ""])
    parts.append("## Keys of version 0.1.0\n\n| then | now |\n|---|---|")
    parts.extend(f"| `{old}` | `{new}` |" for old, new in RENAMED.items())
    return "\n".join([*parts, ""])


def listed(text: str) -> str:
    """Return pyproject.toml's ``text`` with the list of keys as it should be."""
    before, rest = text.split(BEGIN)
    tables: list[Any] = []
    for section in sections():
        name = f".{section.section}" if section is not RunConfig else ""
        keys = [f'{key_of(section, n).rpartition(".")[2]} = "auto"' for n in about_of(section)]
        tables.append("\n".join([f"[tool.flwr.app.config{name}]", *keys]))
    return before + BEGIN + "\n\n".join(tables) + "\n" + END + rest.split(END, 1)[1]


if __name__ == "__main__":
    (ROOT / "docs" / "config.md").write_text(page(), encoding="utf-8")
    project = ROOT / "pyproject.toml"
    project.write_text(listed(project.read_text(encoding="utf-8")), encoding="utf-8")
    print("written: docs/config.md, and the list of keys in pyproject.toml")
