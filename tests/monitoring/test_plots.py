"""Pictures: bounded, whole, with names as they are written, and never worth a run."""

import logging
import time
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from feddgm_flwr.core.synthetic import SyntheticSet
from feddgm_flwr.monitoring import plots

ODD = ("$x_1", "$\\frac{$", "a_b^c", "\\alpha{", "%&~#", "猫", "😀", "ع", "_hidden", "x" * 300)


def synthetic(owners, labels, classes, size=8):
    n = len(labels)
    return SyntheticSet(
        images=torch.rand(n, 1, size, size),
        targets=torch.nn.functional.one_hot(torch.tensor(labels), classes).float(),
        weights=torch.ones(n),
        owner=torch.tensor(owners),
    )


def every(clients, classes, each=1, size=8):
    pairs = [(m, k) for m in range(clients) for k in range(classes) for _ in range(each)]
    return synthetic([m for m, _ in pairs], [k for _, k in pairs], classes, size)


def size_of(path):
    with Image.open(path) as picture:
        picture.load()
        return picture.size


def titles(monkeypatch):
    """Hear the titles of pictures."""
    from matplotlib.axes import Axes

    heard, true = [], Axes.set_title

    def hear(self, label, **how):
        heard.append(label)
        return true(self, label, **how)

    monkeypatch.setattr(Axes, "set_title", hear)
    return heard


def test_odd_names_are_drawn_as_they_are_written(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.draw_ownership(np.ones((len(ODD), 2), int), ODD, tmp_path / "owners.png")
        plots.draw_round(tmp_path, 1, every(2, len(ODD)), ODD)
    for name in ("owners", "round_001", "over_rounds"):
        assert min(size_of(tmp_path / f"{name}.png")) > 100


@pytest.mark.parametrize("method", ["$bad", "_hidden", "a_b^{", "猫"])
def test_odd_names_of_runs_are_drawn(tmp_path, method):
    result = {
        "method": method, "dataset": "$d_{", "clients": 2, "partition": "^", "alpha": None,
        "seed": 0, "generator_only": {},
        "rounds": [{"round": 1, "accuracy": {"$m_": 0.5}}, {"round": 2, "accuracy": {"$m_": 0.7}}],
    }  # fmt: skip
    plots.draw_accuracy([result], tmp_path / "accuracy.png")
    assert min(size_of(tmp_path / "accuracy.png")) > 100


def test_a_dollar_sign_begins_no_formula(tmp_path):
    """Drawn as a formula, $x_1$ would be narrower than the same letters plain."""

    def width(name):
        cells = {(0, 0): [np.zeros((8, 8, 1), np.uint8)]}
        plots.draw_table(cells, [name], ["c"], tmp_path / "x.png", title="", across=1)
        return size_of(tmp_path / "x.png")[0]

    assert width("$aaaaaaaa_{bbbbbbbb}$") > width("aaaaaaaabbbbbbbb") + 20


@pytest.mark.slow
def test_hundreds_of_clients_and_classes_are_drawn_in_bounds(tmp_path, monkeypatch):
    heard = titles(monkeypatch)
    names = tuple(f"class {k}" for k in range(1000))
    began = time.perf_counter()
    plots.draw_ownership(np.ones((1000, 200), int), names, tmp_path / "owners.png")
    plots.draw_grid(every(200, 100), names[:100], tmp_path / "grid.png", title="grid")
    plots.draw_grid(every(1, 1000), names, tmp_path / "wide.png", title="wide")
    plots.draw_grid(every(1, 10, 50), names[:10], tmp_path / "many.png", title="many")
    assert time.perf_counter() - began < 30
    assert "(40 of 200 clients, 50 of 1000 classes)" in heard[0]
    assert heard[1:] == [
        "grid (40 of 200 clients, 50 of 100 classes)",
        "wide (50 of 1000 classes)",
        "many (20 of 50 images a class)",
    ]
    for name in ("owners", "grid", "wide", "many"):
        width, height = size_of(tmp_path / f"{name}.png")
        assert width * height < 30e6


def test_large_images_take_no_gigabytes(tmp_path):
    images = every(10, 10, size=512)
    tracemalloc.start()
    plots.draw_grid(images, tuple("abcdefghij"), tmp_path / "grid.png", title="grid")
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()


def test_what_is_shown_whole_has_a_plain_title(tmp_path, monkeypatch):
    heard = titles(monkeypatch)
    plots.draw_grid(every(3, 2), ("a", "b"), tmp_path / "grid.png", title="grid")
    assert heard == ["grid"]


def test_totals_are_of_all_clients_and_classes(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    heard = {}
    monkeypatch.setattr(Axes, "set_xticks", lambda self, at, names, **how: heard.update(x=names))
    monkeypatch.setattr(Axes, "imshow", lambda self, shares, **how: heard.update(shares=shares))
    counts = np.ones((100, 80), int)
    plots.draw_ownership(counts, tuple(map(str, range(100))), tmp_path / "owners.png")
    assert heard["x"][0] == "0\n(100)"
    assert heard["x"][-1] == "79\n(100)"
    assert heard["shares"] == pytest.approx(1 / 80)


def test_rounds_beyond_999_are_in_order(tmp_path, monkeypatch):
    heard = {}
    for number in (998, 999, 1000, 1001):
        plots.save_images(every(1, 1), tmp_path / f"round_{number:03d}.npz")
    (tmp_path / "round_x.npz").write_bytes(b"not ours")
    (tmp_path / "round_1002.npz").write_bytes(b"PK cut short")
    monkeypatch.setattr(
        plots, "draw_table", lambda cells, rows, columns, path, **how: heard.update(c=columns)
    )
    plots.draw_over_rounds(tmp_path, ("a",), tmp_path / "over.png")
    assert heard["c"] == ["998", "999", "1000", "1001"]


def test_a_picture_is_whole_or_absent(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    plots.draw_grid(every(1, 1), ("a",), tmp_path / "grid.png", title="first")
    before = (tmp_path / "grid.png").read_bytes()

    def half(self, file, **how):
        file.write(b"\x89PNG half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError, match="no space"):
        plots.draw_grid(every(1, 1), ("a",), tmp_path / "grid.png", title="second")
    assert (tmp_path / "grid.png").read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["grid.png"]


@pytest.mark.parametrize(
    "error", [ValueError("a\nb"), MemoryError(), OSError(28, "full"), KeyError]
)
def test_a_failure_is_told_once_in_a_line_and_skipped(caplog, error):
    caplog.set_level(logging.WARNING)
    with plots.skipping("owners.png"):
        raise error
    [record] = caplog.records
    assert record.message.startswith("no owners.png: ")
    assert "the run goes on without it" in record.message
    assert "\n" not in record.message


def test_a_stop_is_not_skipped():
    with pytest.raises(KeyboardInterrupt), plots.skipping("owners.png"):
        raise KeyboardInterrupt
