"""FedAvg of a larger model: its mean by hand, and a run that was cut off."""

import larger_models
import numpy as np
import pytest
import torch
from comparing.units import Unit
from larger_models import Average, averaged, mean_of

CPU = torch.device("cpu")


def test_the_mean_is_by_examples_of_weights_and_statistics():
    one = {"w": torch.tensor([1.0, 2.0]), "running_var": torch.tensor(4.0), "n": torch.tensor(7)}
    two = {"w": torch.tensor([5.0, 2.0]), "running_var": torch.tensor(0.0), "n": torch.tensor(9)}
    mean = mean_of([one, two], [30, 10])
    assert mean["w"].tolist() == [2.0, 2.0]
    assert float(mean["running_var"]) == 3.0
    assert mean["n"].dtype == torch.int64


@pytest.fixture
def row(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 2
    noise = rng.integers(0, 80, (24, 16, 16, 1))
    images = (labels[:, None, None, None] * 120 + noise).astype(np.uint8)
    np.savez(tmp_path / "toy.npz", train_images=images, train_labels=labels,
             test_images=images, test_labels=labels)  # fmt: skip
    said = {
        "num-server-rounds": 2,
        "seed": 5,
        "data.name": "npz",
        "data.root": str(tmp_path / "toy.npz"),
        "data.class-names": "dark,light",
        "data.channels": 1,
        "data.image-size": 16,
        "data.partition": "iid",
        "client.epochs": 1,
        "surrogate.depth": 2,
        "prior.kind": "pixel",
    }
    unit = Unit(label="feddgm", seed=5, clients=2, said=said, fingerprint="toy")
    return Average("alexnet", unit, 0.05)


def test_a_run_that_was_cut_off_goes_on_to_the_same_numbers(row, tmp_path, monkeypatch):
    def told(record):
        return [(r["round"], r["accuracy"], r["up"], r["asked"]) for r in record["rounds"]]

    whole = averaged(row, tmp_path / "whole", CPU)
    assert [r["round"] for r in whole["rounds"]] == [1, 2]
    weights = sum(v.nbytes for v in larger_models._fresh(row).values())
    assert whole["rounds"][0]["up"] == 2 * weights

    mean, calls = mean_of, []

    def cut_in_the_second(replies, counts):
        calls.append(len(calls))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return mean(replies, counts)

    monkeypatch.setattr(larger_models, "mean_of", cut_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        averaged(row, tmp_path / "cut", CPU)
    again = averaged(row, tmp_path / "cut", CPU)
    assert len(calls) == 3
    assert told(again) == told(whole)
    assert Average("alexnet", row.unit, 0.1).name != row.name
