"""The overview reads tables that compare.py made, and says of each what it is ahead by."""

import json

from comparing.entries import OURS
from overview import Comparison, draw, lead_table


def written(folder, alpha, reached):
    runs = [
        {
            "label": label,
            "seed": seed,
            "length": 2,
            "start": {"surrogate": 0.1},
            "rounds": [
                {"accuracy": {"surrogate": a}, "down": 1, "up": 1, "asked": 1,
                 "clients": {"wall": 1.0, "cpu": 1.0}, "server": {"wall": 1.0, "cpu": 1.0},
                 "clients_on": "cpu", "server_on": "cpu"}
                for a in accuracies
            ],
        }
        for label, by_seed in reached.items()
        for seed, accuracies in enumerate(by_seed)
    ]  # fmt: skip
    how = {"data.partition": "dirichlet", "data.alpha": alpha}
    folder.mkdir()
    text = json.dumps({"title": "toy, 10 clients", "division": how, "runs": runs})
    (folder / "results.json").write_text(text)
    return folder


def test_leads_are_paired_by_seed_and_rows_that_a_table_lacks_are_left_out(tmp_path):
    ours, avg = [[0.5, 0.6], [0.7, 0.8]], [[0.4, 0.6], [0.6, 0.7]]
    rows = (OURS, "fedavg", "ccvr")
    folders = [written(tmp_path / "a", 0.1, {OURS: ours, "fedavg": avg}),
               written(tmp_path / "b", 0.05, {OURS: ours})]  # fmt: skip
    told = [Comparison.read(folder, rows) for folder in folders]
    lines = lead_table(told, OURS, rows).splitlines()[2:]
    assert lines == [
        f"| **toy, alpha 0.1**: {OURS} | 60.0 | 70.0 | - | - | - |",
        "| minus fedavg | +10.0 [10.0, 10.0] | none: +5.0 [-58.5, 68.5] | - | - | - |",
        f"| **toy, alpha 0.05**: {OURS} | 60.0 | 70.0 | - | - | - |",
    ]
    many = Comparison.read(
        written(tmp_path / "c", 0.5, {OURS: ours, **{f"row {i}": avg for i in range(9)}}),
        (OURS, *(f"row {i}" for i in range(9))),
    )
    draw([many], (OURS, *(f"row {i}" for i in range(9))), tmp_path / "x.png")
    draw(told, rows, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000
