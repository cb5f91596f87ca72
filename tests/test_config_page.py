"""docs/config.md says what the dataclasses say."""

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_config_page_is_up_to_date_and_every_setting_has_its_sentence():
    spec = importlib.util.spec_from_file_location("build_config", DOCS / "build_config.py")
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    page = builder.page()
    assert (DOCS / "config.md").read_text(encoding="utf-8") == page
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 80
    assert not [row for row in rows if row.endswith("|  |")]
