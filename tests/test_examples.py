"""Every example runs, and is as short as it is meant to be."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
def test_one_round_is_algorithm_1_in_thirty_lines_and_teaches_something(capsys):
    script = EXAMPLES / "one_round.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 30
    before, after = runpy.run_path(str(script))["accuracy"]
    assert after > before + 0.2
    said = capsys.readouterr().out
    assert said.count("last_loss") == 4
    assert f"{before} {after}" in said
