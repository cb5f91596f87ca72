"""docs/config.md and pyproject.toml's list say what the declarations say."""

import importlib.util
from pathlib import Path

import pytest

from feddgm_flwr import methods
from feddgm_flwr.config import RENAMED, settings

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def builder():
    spec = importlib.util.spec_from_file_location("build_config", ROOT / "docs" / "build_config.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(builder) -> dict[str, list[str]]:
    """Return each key's cells: type, default, the paper's value, resume, meaning."""
    tables, _ = builder.page().split("## Keys of version 0.1.0")
    lines = [line for line in tables.splitlines() if line.startswith("| `")]
    cells = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines]
    return {key.strip("`"): rest for key, *rest in cells}


def test_the_page_is_up_to_date(builder):
    assert (ROOT / "docs" / "config.md").read_text(encoding="utf-8") == builder.page()


def test_the_list_of_keys_in_pyproject_is_up_to_date(builder):
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert builder.listed(text) == text


def test_the_list_is_written_anew_whatever_stood_there(builder):
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    stale = text.replace('alpha = "auto"\n', "").replace('trim = "auto"', 'trim = "auto"\nold = 1')
    assert stale != text
    assert builder.listed(stale) == text


def test_every_setting_has_one_row_of_whole_cells(rows):
    assert list(rows) == list(settings())
    assert {len(cells) for cells in rows.values()} == {5}


def test_every_setting_has_its_sentence(rows):
    for key, declared in settings().items():
        assert declared.about.meaning.endswith("."), key
        # A bar would end the cell.
        assert "|" not in declared.about.meaning, key
        assert rows[key][4].startswith(declared.about.meaning), key


def test_every_bound_and_every_choice_is_on_the_page(rows):
    for key, declared in settings().items():
        assert declared.about.expected in rows[key][0], key
    assert all(f"'{name}'" in rows["method"][0] for name in methods.names())
    assert rows["distill.optimizer"][0] == '`"adam"`, `"sgd"`'
    assert rows["distill.momentum"][0] == "float, in [0, 1)"
    assert rows["data.flip"][0] == "bool"


def test_values_are_written_as_a_config_file_says_them(rows):
    assert [rows[key][1] for key in ("resume", "seed", "out-dir", "client.device")] == [
        *("`false`", "`0`", '`""`', '`"auto"`')
    ]
    assert rows["distill.optimizer"][2] == '`"sgd"`'
    assert rows["distill.warm-start"][2] == "`false`"
    assert rows["union.prior-images-per-class"][2] == "`0`"
    assert rows["data.alpha"][2] == ""


def test_what_is_read_only_under_another_setting_says_so(rows):
    assert rows["data.alpha"][4].endswith('Read only under `data.partition` = `"dirichlet"`.')
    assert rows["prior.path"][4].endswith(
        '`"autoencoder"` or `"auto"` or `"glyphs"` or `"pipeline"`.'
    )


def test_a_resumable_key_is_marked(rows):
    marked = {key for key, cells in rows.items() if cells[3] == "yes"}
    assert marked == {key for key, declared in settings().items() if declared.about.may_differ}
    assert {cells[3] for cells in rows.values()} == {"yes", ""}


def test_the_keys_to_try_first_exist(builder):
    assert len(builder.TRY_FIRST) == 5
    assert set(builder.TRY_FIRST) <= set(settings())
    head, _ = builder.page().split("## The run")
    assert all(f"`{key}`" in head for key in builder.TRY_FIRST)


def test_a_methods_own_section_names_its_methods(builder):
    page = builder.page()
    assert "FedProx. Read by `fedprox`." in page
    assert "Read by `fedavgm`, `fedadam`, `fedyogi`, `fedadagrad`." in page


def test_every_renamed_key_is_told(builder):
    _, renamed = builder.page().split("## Keys of version 0.1.0")
    assert all(f"| `{old}` | `{new}` |" in renamed for old, new in RENAMED.items())
