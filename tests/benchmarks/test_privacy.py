"""Laws of the benchmark of privacy: parts are disjoint, rows private where they say so."""

import privacy
import torch

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.images import ImageSet

RECORD = {
    "row": "feddgm",
    "seed": 0,
    "accuracy": [0.5, 0.75],
    "diverged": "",
    "epsilon": [3.0, 5.0, 4.0],
    "audit": {
        "accuracy_on_members": 0.9,
        "accuracy_on_non_members": 0.8,
        "rmia": {
            "auc": {"value": 0.6, "low": 0.5, "high": 0.7},
            "tpr_at_0.01": {"value": 0.02, "low": 0.01, "high": 0.03},
            "tpr_at_0.001": None,
        },
        "nearness": {"ratio": 0.95, "p_value": 0.03},
    },
}


def test_a_clients_parts_are_disjoint_and_all_of_its_images():
    data = ImageSet(torch.arange(21.0).reshape(21, 1, 1, 1), torch.zeros(21, dtype=torch.long))
    parts = privacy.parted(data, 3, 1)
    assert [len(p) for p in parts] == [10, 7, 4]
    assert sorted(torch.cat([p.images for p in parts]).flatten().tolist()) == list(range(21))
    assert torch.equal(privacy.Halving(3).images(1, data).images, parts[0].images)


def test_rows_are_private_where_they_say_so():
    for row, said in privacy.ROWS.items():
        config = RunConfig.from_run_config({"client.compile": False, **said})
        assert config.privacy.on == ("noise" in row)
        assert (config.distill.of == "aggregate") == ("mean alone" in row)


def test_a_finished_run_is_kept_until_its_settings_change(tmp_path):
    (case,) = privacy.cases(["feddgm"], [0], {"num-server-rounds": 2})
    file = tmp_path / "units" / f"{case.name}.json"
    file.parent.mkdir()
    assert privacy.stored(tmp_path, case) is None
    file.write_text(privacy.json.dumps({**RECORD, "said": case.said}))
    assert privacy.stored(tmp_path, case)["accuracy"] == [0.5, 0.75]
    (longer,) = privacy.cases(["feddgm"], [0], {"num-server-rounds": 3})
    assert privacy.stored(tmp_path, longer) is None


def test_tables():
    last = privacy.accuracy_table([RECORD]).splitlines()[-1]
    assert last == "| feddgm | 50.0 | 75.0 | 5.0 (4.0) | 1 |"
    last = privacy.audit_table([RECORD]).splitlines()[-1]
    assert last == (
        "| feddgm | 0 | 90.0, 80.0 | 0.600 (0.500 to 0.700) | 2.0 % (1.0 to 3.0) | - | 0.950 | "
        "0.030 |"
    )
