"""Write docs/events.md from the dataclasses of ``feddgm_flwr.events``.

Run ``python docs/build_events.py`` after changing an event; a test compares the two.
"""

import ast
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from feddgm_flwr.events import KINDS, PHASES, SCHEMA, Event, Scalar

HEAD = f"""# Every event

A run appends what happens to `events.jsonl` in its folder, at once, one JSON object a line. Every
line has `v` (the version of this format, {SCHEMA}), `time` (seconds since the epoch), `kind` and
`round` (0 before the first), and then the fields of its kind. Within a version, kinds and fields
are added, never renamed or removed: a reader ignores those that it does not know. A number that is
NaN or infinite is `null`; a scalar is a boolean, a number or a string. A crash may cut a line; what
goes on after it begins on a new one. `flwr_dashboard.watched.Watched` writes the same of any Flower
strategy (docs/dashboard.md).

```json
{{"v": {SCHEMA}, "time": 1.76e9, "kind": "phase-end", "round": 3, "phase": "learn", "seconds": 8.5}}
```

`feddgm_flwr.events` needs the standard library alone and follows a log while it grows:

```python
follower = Follower("events.jsonl")
while True:
    for recorded in follower.poll():
        print(recorded.time, recorded.event)
    time.sleep(1)
```

Each event is then a dataclass, an unknown kind is an `Unknown`, `follower.broken` counts the lines
that are no events, and `follower.restarted` grows when the file was cut or replaced: what was read
before is then void.

<!-- Written by docs/build_events.py; change feddgm_flwr/events.py instead. -->
"""

NAMES = {int: "integer", float: "number", str: "string", bool: "boolean", NoneType: "null"}


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


def type_name(hint: Any) -> str:  # noqa: ANN401
    """Return the type as a reader of JSON sees it."""
    origin, args = get_origin(hint), get_args(hint)
    if hint == Scalar:
        return "scalar"
    if origin is Literal:
        return ", ".join(f"`{word}`" for word in args)
    if origin is UnionType:
        return " or ".join(map(type_name, args))
    if origin is tuple:
        return f"array of {plural(args[0])}"
    if origin is Mapping:
        return f"object of {plural(args[1])}"
    return NAMES[hint]


def plural(hint: Any) -> str:  # noqa: ANN401
    """Return the type's name for many of it."""
    first, space, rest = type_name(hint).partition(" ")
    return f"{first}s{space}{rest}"


def table(cls: type[Event]) -> list[str]:
    """Return the rows of one kind's own fields."""
    docs = field_docs(cls)
    rows = [
        f"| `{name}` | {type_name(hint)} | {docs[name]} |"
        for name, hint in get_type_hints(cls).items()
        if name != "round"
    ]
    return ["| field | type | meaning |", "|---|---|---|", *rows, ""]


def page() -> str:
    """Return the whole page."""
    phases = [f"| `{phase}` | {meaning} |" for phase, meaning in PHASES.items()]
    parts = [HEAD, "## Phases of a round\n", "| phase | meaning |", "|---|---|", *phases, ""]
    for kind, cls in KINDS.items():
        about = (cls.__doc__ or "").splitlines()[0]
        parts += [f"## {kind}\n\n{about}\n", *table(cls)]
    return "\n".join(parts)


if __name__ == "__main__":
    (Path(__file__).parent / "events.md").write_text(page(), encoding="utf-8")
    print("written: docs/events.md")
