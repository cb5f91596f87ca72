"""Laws of the hostile clients: liars lie in the way they are told, and nobody else does."""

import json
import sys
from dataclasses import replace
from unittest.mock import patch

import hostile
import pytest
import torch
from hostile import ATTACKS, HONEST, LEFT_OUT, LIE, Case, Hostile, a_little, cases
from inprocess import Meddler

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.images import ImageSet
from feddgm_flwr.core.robust import distance
from feddgm_flwr.core.state import ClientUpdate, ServerState

START = {"w": torch.zeros(4, 3), "b": torch.zeros(3)}
LIARS = (1, 4)


def heard():
    """Return ten honest replies, each one unit further."""
    return [ClientUpdate(i, {k: v + 1 + i for k, v in START.items()}, 50) for i in range(10)]


def told(attack):
    meddler = Hostile(attack, LIARS, 10, seed=0)
    return {u.partition_id: u for u in meddler.replies(ServerState(0, START), heard())}


@pytest.mark.parametrize("attack", [HONEST, *ATTACKS])
def test_nobody_but_a_liar_is_touched(attack):
    said = told(attack)
    for honest in heard():
        if attack == HONEST or honest.partition_id not in LIARS:
            assert said[honest.partition_id].num_examples == honest.num_examples
            assert distance(said[honest.partition_id].params, honest.params) == 0


def test_each_lie_is_what_it_is_called():
    honest = {u.partition_id: u for u in heard()}
    length = distance(START, honest[1].params)
    assert torch.equal(told("sign flip")[1].params["w"], -honest[1].params["w"])
    assert distance(START, told("100-fold")[1].params) == pytest.approx(100 * length, rel=1e-5)
    assert told("count 1e9")[1].num_examples == LIE
    assert distance(START, told("noise")[1].params) == pytest.approx(5 * length, rel=1e-5)
    assert distance(START, told("free rider")[1].params) == pytest.approx(1e-3 * length, rel=1e-3)
    assert set(told("NaN")) == set(told(LEFT_OUT)) == set(range(10)) - set(LIARS)
    colluding = told("a little")
    assert torch.equal(colluding[1].params["w"], colluding[4].params["w"])
    expected = a_little([u.params for i, u in honest.items() if i not in LIARS])
    assert torch.equal(colluding[1].params["w"], expected["w"])
    # Within what honest clients say: no entry stands out.
    assert 1 <= float(expected["w"].min()) <= 10


def test_a_liar_turns_its_labels_and_an_honest_client_does_not():
    data = ImageSet(torch.zeros(3, 1, 2, 2), torch.tensor([0, 3, 9]))
    meddler = Hostile("label flip", LIARS, 10, seed=0)
    assert meddler.images(1, data).labels.tolist() == [9, 6, 0]
    assert meddler.images(2, data) is data
    assert Hostile("sign flip", LIARS, 10, seed=0).images(1, data) is data


def test_without_a_meddler_nothing_changes():
    replies, data = heard(), ImageSet(torch.zeros(1, 1, 2, 2), torch.zeros(1).long())
    assert Meddler().replies(ServerState(0, START), replies) is replies
    assert Meddler().images(0, data) is data


def test_every_row_is_a_config_and_every_run_has_a_file_of_its_own(tmp_path):
    todo = cases(hostile.DIGITS, hostile.ROWS, ATTACKS, [0, 1], {"data.name": "digits"})
    assert len({case.name for case in todo}) == len(todo) == 2 * 10 * len(hostile.ROWS)
    for case in todo[: len(hostile.ROWS)]:
        RunConfig.from_run_config(case.said)


def test_without_a_prior_that_knows_the_classes_runs_begin_with_random_weights():
    def starts(told):
        return {c.said["start.weights"] for c in cases(hostile.DIGITS, ["fedavg"], [], [0], told)}

    assert starts({"data.name": "digits"}) == {"prior"}
    assert starts({"data.name": "digits", "prior.kind": "pixel"}) == {"random"}


def test_a_finished_run_counts_while_its_settings_are_the_same(tmp_path):
    case = Case("fedavg", HONEST, 0, {"method": "fedavg"})
    assert hostile.stored(tmp_path, case) is None
    (tmp_path / "units").mkdir()
    (tmp_path / "units" / f"{case.name}.json").write_text(json.dumps({"said": case.said}))
    assert hostile.stored(tmp_path, case) == {"said": case.said}
    assert hostile.stored(tmp_path, Case("fedavg", HONEST, 0, {"method": "krum"})) is None
    elsewhere = Case("fedavg", HONEST, 0, {"method": "fedavg", "data.root": "/other/images.npz"})
    assert hostile.stored(tmp_path, elsewhere) == {"said": case.said}


def test_runs_of_other_settings_are_neither_overwritten_nor_reported_as_none(tmp_path):
    case = Case("fedavg", HONEST, 0, {"method": "fedavg", "num-server-rounds": 2})
    file = hostile.file_of(tmp_path, case)
    file.parent.mkdir()
    file.write_text(json.dumps({"said": case.said, "seed": 0}))
    other = replace(case, said={"method": "fedavg", "num-server-rounds": 3})
    with pytest.raises(SystemExit, match="holds runs of other settings, such as fedavg-"):
        hostile.run_all([other], tmp_path, 1, "cpu")
    assert json.loads(file.read_text())["said"] == case.said
    words = ["hostile.py", "--preset", "digits", "--rounds", "7", "--out", str(tmp_path)]
    with (
        patch.object(sys, "argv", [*words, "--report-only"]),
        pytest.raises(SystemExit, match="holds no finished run of these settings; say"),
    ):
        hostile.main()


def record(row, attack, seed, accuracy, clients=()):
    return {"row": row, "attack": attack, "seed": seed, "accuracy": [accuracy], "diverged": "",
            "clients": list(clients)}  # fmt: skip


def test_the_table_says_points_lost_against_the_same_seed():
    done = [record("fedavg", HONEST, 0, 0.9), record("fedavg", HONEST, 1, 0.8),
            record("fedavg", "noise", 0, 0.6), record("fedavg", "noise", 1, 0.7),
            record("not whole", "noise", 0, 0.5)]  # fmt: skip
    table = hostile.lost_table(done, ["noise", "NaN"])
    assert table.splitlines()[2:] == ["| fedavg | 85.0 | - | 20.0 | - | 20.0 |"]


def test_detection_is_the_area_under_the_curve():
    def client(lies, loss):
        return {"lies": lies, "matching loss left": loss, "movement": 1.0, "examples": 1.0}

    seen = [client(False, 0.5), client(False, 0.6), client(True, 0.9)]
    done = [record("feddgm, mean", "noise", 0, 0.5, seen)]
    lines = hostile.detection_table(done, "feddgm, mean", ["noise", "NaN"]).splitlines()
    assert lines[2] == "| matching loss left | 1.00 | - |"
    assert lines[-1] == "| examples | 0.50 | - |"
