"""docs/events.md says what the dataclasses say."""

import importlib.util
from dataclasses import fields
from pathlib import Path

from feddgm_flwr.events import KINDS

DOCS = Path(__file__).parents[1] / "docs"


def test_events_page_is_up_to_date_and_every_field_has_its_meaning():
    spec = importlib.util.spec_from_file_location("build_events", DOCS / "build_events.py")
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    page = builder.page()
    assert (DOCS / "events.md").read_text(encoding="utf-8") == page
    for kind, cls in KINDS.items():
        section = page.partition(f"\n## {kind}\n")[2].partition("\n## ")[0]
        rows = [line for line in section.splitlines() if line.startswith("| `")]
        own = [f.name for f in fields(cls) if f.name != "round"]
        assert [row.split("`")[1] for row in rows] == own
        assert not [row for row in rows if row.endswith("|  |")]
