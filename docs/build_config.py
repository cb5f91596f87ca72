"""Write docs/config.md, and the list of keys in pyproject.toml, from the declared settings.

Run ``python docs/build_config.py`` after changing a setting; a test compares.
"""

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from feddgm_flwr.config import RENAMED, Declared, RunConfig, sections, settings
from feddgm_flwr.core.settings import about_of, key_of

ROOT = Path(__file__).resolve().parents[1]

HEAD = """# Every setting

Set with `flwr run . --run-config "distill.iterations=50 seed=1"` or with a TOML file of them
(`conf/` has one for each reported experiment). A key left at `"auto"`, as all are in
`pyproject.toml`, takes the value of the recipe: `feddgm` (ours, the default) or `paper` (the
authors' settings). An unknown key, a wrong type, a value out of range and one that another setting
leaves unread end the run at once with one sentence. "Resume" marks what a resumed run may change.

<!-- Written by docs/build_config.py; change the declaration beside what it configures instead. -->
"""

BEGIN = "# Every key is described in docs/config.md, whose script writes this list too.\n"
END = "\n[tool.ruff]\n"


def type_name(declared: Declared) -> str:
    """Return how a reader writes the type and the bounds."""
    if get_origin(declared.hint) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(declared.hint))
    bounds = declared.about.expected if declared.about.words is None else ""
    return f"{declared.hint.__name__} {bounds}".strip()


def row(key: str, declared: Declared) -> str:
    """Return a key's line of its table."""
    about = declared.about
    paper = "" if about.paper is None else f"`{about.paper!r}`"
    under = "".join(
        f" Read only under `{other.replace('_', '-')}` = {' or '.join(f'`{v}`' for v in values)}."
        for other, values in about.only.items()
    )
    meaning = (about.meaning + under).replace("|", "/")
    resume = "yes" if about.may_differ else ""
    default = f"`{declared.default!r}`"
    return f"| `{key}` | {type_name(declared)} | {default} | {paper} | {resume} | {meaning} |"


def page() -> str:
    """Return the whole page."""
    known = settings()
    parts = [HEAD]
    for section in sections():
        about = (section.__doc__ or "").splitlines()[0]
        parts.append(f"## {section.section or 'The run'}\n\n{about}\n")
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
