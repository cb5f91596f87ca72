"""Write docs/config.md from the dataclasses of ``feddgm_flwr.config``.

Run ``python docs/build_config.py`` after changing a setting; a test compares the two.
"""

import ast
import inspect
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from feddgm_flwr import config
from feddgm_flwr.config import RECIPES, RunConfig, flat_keys

HEAD = """# Every setting

Set with `flwr run . --run-config "distill.iterations=50 seed=1"` or with a TOML file of them
(`conf/` has one for each reported experiment). A key that stands at `"auto"` in `pyproject.toml`
takes the value of the recipe: `feddgm` (ours, the default) or `paper` (the authors' settings).
An unknown key, a wrong type or a value out of range ends the run at once with one sentence.

<!-- Written by docs/build_config.py; change feddgm_flwr/config.py instead. -->
"""


def field_docs(cls: type) -> dict[str, str]:
    """Return the sentence under each field of ``cls`` and of what it inherits."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        body = ast.parse(inspect.getsource(base)).body[0].body  # type: ignore[attr-defined]
        for node, after in zip(body, [*body[1:], None], strict=True):
            is_doc = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if isinstance(node, ast.AnnAssign) and is_doc:
                docs[node.target.id] = " ".join(str(after.value.value).split())
    return docs


def type_name(hint: object) -> str:
    """Return how a reader writes the type."""
    if get_origin(hint) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(hint))
    return getattr(hint, "__name__", str(hint))


def page() -> str:
    """Return the whole page."""
    run = RunConfig()
    ours, theirs = run.flat(), {**run.flat(), **RECIPES["paper"]}
    sections: dict[str, list[str]] = {}
    classes = {"": RunConfig} | {
        name.replace("_", "-"): hint
        for name, hint in get_type_hints(RunConfig).items()
        if inspect.isclass(hint) and hint.__module__ == config.__name__
    }
    for key in flat_keys(RunConfig):
        section, _, name = key.rpartition(".")
        cls = classes[section]
        field = name.replace("-", "_")
        paper = "" if ours[key] == theirs[key] else f"`{theirs[key]!r}`"
        doc = field_docs(cls).get(field, "").replace("|", "/")
        row = f"| `{key}` | {type_name(get_type_hints(cls)[field])} | `{ours[key]!r}` "
        sections.setdefault(section, []).append(row + f"| {paper} | {doc} |")
    parts = [HEAD]
    for section, rows in sections.items():
        about = (classes[section].__doc__ or "").splitlines()[0]
        parts.append(f"## {section or 'The run'}\n\n{about}\n")
        parts.append("| key | type | `feddgm` | `paper`, if other | what it does |")
        parts.append("|---|---|---|---|---|")
        parts.extend([*rows, ""])
    return "\n".join(parts)


if __name__ == "__main__":
    (Path(__file__).parent / "config.md").write_text(page(), encoding="utf-8")
