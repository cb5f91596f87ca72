"""Laws of the audit: copies are near, what was learned by heart is found out, chance is chance."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from inline_grid import simulated
from inprocess_run import run
from torch import nn

from feddgm_flwr import events
from feddgm_flwr.auditing import command, subject
from feddgm_flwr.auditing.membership import OFFLINE_A, attacked, judged, rmia
from feddgm_flwr.auditing.nearness import nearness
from feddgm_flwr.auditing.subject import Subject, real_images, reference
from feddgm_flwr.core.images import ImageSet
from feddgm_flwr.data.datasets import load, read
from feddgm_flwr.data.partition import partition


def rng(seed=0):
    return np.random.default_rng(seed)


def noise(count, seed):
    return torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


# Distances.


def test_copies_of_members_are_far_nearer_to_them():
    members, others = noise(80, 1), noise(60, 2)
    found = nearness(members[:60] * 0.999, members, others, rng=rng())
    assert found.real == 60
    assert found.ratio < 0.5
    assert found.nearer > 0.7
    assert found.p_value == 0.001


def test_a_copy_has_no_distance():
    members, others = noise(80, 1), noise(80, 2)
    assert nearness(members, members, others, rng=rng()).members == 0


def test_images_of_nobody_are_as_near_to_either():
    found = [nearness(noise(40, 3 + s), noise(50, 1), noise(50, 2), rng=rng(s)) for s in range(5)]
    assert all(0.9 < f.ratio < 1.1 for f in found)
    assert any(f.p_value > 0.1 for f in found)


# Attacks.


def test_scores_that_tell_all_and_scores_that_tell_nothing():
    told = judged(rng(1).normal(9, 1, 1000), rng(2).normal(0, 1, 1000), rng=rng())
    assert told.auc.value == pytest.approx(1, abs=1e-3)
    assert told.true_positives[0.01].value > 0.99
    blind = judged(rng(1).normal(0, 1, 1000), rng(2).normal(0, 1, 1000), rng=rng())
    assert blind.auc.low < 0.5 < blind.auc.high
    assert blind.true_positives[0.01].low < 0.01 < blind.true_positives[0.01].high


def test_a_rate_below_one_of_the_non_members_is_not_told():
    told = judged(rng(1).normal(0, 1, 300), rng(2).normal(0, 1, 300), rng=rng())
    assert told.true_positives[0.01] is not None
    assert told.true_positives[0.001] is None


def test_the_area_is_that_of_two_normal_distributions():
    """Of N(1, 1) against N(0, 1) it is Phi(1 / sqrt 2)."""
    told = judged(rng(1).normal(1, 1, 4000), rng(2).normal(0, 1, 4000), rng=rng())
    assert told.auc.value == pytest.approx(0.7602, abs=0.01)
    assert told.auc.low < 0.7602 < told.auc.high


def test_rmia_compares_with_models_that_never_saw_the_image():
    own, others = np.log([0.9, 0.9]), [np.log([0.9, 0.1]), np.log([0.7, 0.3])]
    out = np.array([0.8, 0.2])
    expected = np.array([0.9, 0.9]) / (((1 + OFFLINE_A) * out + 1 - OFFLINE_A) / 2)
    np.testing.assert_allclose(np.exp(rmia(own, others)), expected)


class Heart(nn.Module):
    """Knows some images by heart, and of others as much as anyone."""

    def __init__(self, known, labels):
        super().__init__()
        self.known, self.labels = known, labels

    def forward(self, images):
        logits = torch.zeros(len(images), 3)
        for row, image in enumerate(images):
            seen = (self.known == image).flatten(1).all(1).nonzero().flatten()
            if len(seen):
                logits[row, self.labels[seen[0]]] = 5.0
        return logits


def test_a_model_that_knows_its_images_by_heart_is_found_out():
    labels = torch.arange(200) % 3
    mine, others = ImageSet(noise(200, 1), labels), ImageSet(noise(200, 2), labels)
    blank = Heart(noise(1, 3), labels)
    found = attacked(Heart(mine.images, labels), [blank], mine, others, rng=rng())
    assert found.accuracy[0] == 1
    assert found.rmia.auc.value == found.loss.auc.value == 1
    assert found.rmia.true_positives[0.01].value == 1
    fair = attacked(blank, [blank], mine, others, rng=rng())
    assert fair.rmia.auc.value == 0.5


# A run.


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audited") / "run"
    return run(folder, rounds__fraction_train=0.67, num_server_rounds=1, seed=2)


def test_members_are_the_images_of_those_who_were_asked(ended):
    audited = Subject.of(ended.folder)
    asked = sorted({c for e in ended.of("round-start") for c in e["clients"]})
    assert len(asked) == 2
    real = real_images(audited, None, None, None)
    data = read(audited.config.data, "train")
    parts = partition(data.labels, audited.config.data, num_clients=3, seed=2)
    assert len(real.members) == sum(len(parts[c]) for c in asked)
    test = load(audited.config.data, "test")
    assert len(real.non_members) + len(real.population) == len(test)


def test_those_who_were_asked_late_in_a_long_log_are_members_too(ended, monkeypatch):
    monkeypatch.setattr(events, "CHUNK_BYTES", 1000)
    (start,) = ended.of("round-start")
    assert subject.asked_clients(ended.folder) == tuple(sorted(start["clients"]))


def test_an_audit_leaves_figures_a_table_and_a_picture_and_goes_on(ended, monkeypatch, capsys):
    assert command.main([str(ended.folder), "--references", "2"]) == 0
    folder = ended.folder / "audit"
    told = json.loads((folder / "audit.json").read_text())
    assert told["reference_models"] == 2
    found = told["attacks"]["surrogate"]["rmia"]
    assert found["auc"]["low"] <= found["auc"]["value"] <= found["auc"]["high"]
    assert found["tpr_at_0.001"] is None  # of 180 non-members
    assert list(told["nearness"]) == ["1"]
    assert 0 < told["nearness"]["1"]["p_value"] <= 1
    assert "| surrogate |" in (folder / "audit.md").read_text()
    assert (folder / "audit.png").stat().st_size > 1000
    assert "written:" in capsys.readouterr().out

    def again(*of):
        raise AssertionError("a reference model that was there was trained anew")

    monkeypatch.setattr(command, "reference", again)
    assert command.main([str(ended.folder), "--references", "2"]) == 0
    assert json.loads((folder / "audit.json").read_text()) == told


def test_reference_models_that_fit_no_more_are_made_anew_or_named(ended, monkeypatch, capsys):
    made = []
    monkeypatch.setattr(command, "reference", lambda *of: made.append(of) or reference(*of))
    audited = Subject.of(ended.folder)
    population = real_images(audited, None, None, None).population
    command.references(audited, population, 2)
    before = len(made)
    longer = dataclasses.replace(audited.config, num_server_rounds=2)
    command.references(dataclasses.replace(audited, config=longer), population, 1)
    assert len(made) == before + 1
    for file in (ended.folder / "audit" / "references").iterdir():
        file.write_bytes(b"x")
    assert command.main([str(ended.folder), "--references", "2"]) == 1
    assert "remove a reference model to have it anew" in capsys.readouterr().out
    shutil.rmtree(ended.folder / "audit" / "references")


def test_a_prior_that_is_gone_is_said_in_a_sentence(ended, monkeypatch, capsys):
    def gone(config):
        raise ValueError("prior.path must be a file, got '/gone'; correct it")

    monkeypatch.setattr(command, "first_surrogate", gone)
    arguments = [str(ended.folder), "--references", "3"]
    assert command.main(arguments) == 1
    assert capsys.readouterr().out == "prior.path must be a file, got '/gone'; correct it\n"


@pytest.mark.parametrize(
    ("parts", "clients", "own", "named"),
    [
        (2, (0, 1, 7), {7}, "7"),
        (2, (0, 1, 7), (), "7"),
        (3, (0, 1, 2), {1}, "1"),
        (0, range(14), range(14), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 4 more"),
    ],
)
def test_nobodys_part_is_taken_for_a_devices_own_data(ended, parts, clients, own, named):
    audited = dataclasses.replace(
        Subject.of(ended.folder),
        partitions=parts,
        clients=tuple(clients),
        own_data=frozenset(own),
    )
    said = rf"^--members must be named where .* got none for clients {named}; name "
    with pytest.raises(ValueError, match=said):
        subject.clients_images(audited)


def test_a_client_with_data_of_its_own_that_was_not_asked_does_no_harm(ended):
    audited = dataclasses.replace(Subject.of(ended.folder), clients=(0, 2), own_data=frozenset({1}))
    assert len(subject.clients_images(audited))


def test_a_run_of_parts_and_of_data_of_ones_own_says_whose_images_must_be_named(tmp_path, capsys):
    nodes = simulated(3)
    nodes[1] = {"partition-id": 1, "data-dir": str(saved(tmp_path / "own.npz", train=5))}
    how = {"nodes": nodes, "method": "fedavg"}
    run(tmp_path / "run", num_server_rounds=1, **how)
    assert Subject.of(tmp_path / "run").own_data == {1}
    # Another device bears the id from here on, and images of the first are in the models still.
    how["nodes"] = simulated(3)
    run(tmp_path / "run", num_server_rounds=2, resume=True, **how)
    assert Subject.of(tmp_path / "run").own_data == {1}
    assert command.main([str(tmp_path / "run")]) == 1
    assert "got none for clients 1; name images" in capsys.readouterr().out


def saved(file, **parts):
    """Save parts by the seeds of their noise."""
    arrays = {}
    for part, seed in parts.items():
        arrays[f"{part}_images"] = (noise(12, seed) * 255).byte().permute(0, 2, 3, 1).numpy()
        arrays[f"{part}_labels"] = np.arange(12) % 10
    np.savez(file, **arrays)
    return file


def test_non_members_are_the_part_that_nobody_trains_on_where_it_is_there(ended, tmp_path):
    audited = Subject.of(ended.folder)
    mine, held = saved(tmp_path / "mine.npz", train=5, test=6), saved(tmp_path / "b.npz", test=6)
    both, apart = (real_images(audited, mine, path, None) for path in (mine, held))
    assert torch.equal(both.non_members.images, apart.non_members.images)
    assert len(both.members) == 12
    torn = saved(tmp_path / "torn.npz", train=5)
    np.savez(torn, **np.load(torn), test_images=np.zeros((1, 6, 6), np.uint8))
    with pytest.raises(ValueError, match=r"must hold arrays .*test_labels"):
        real_images(audited, mine, torn, None)


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ((5, 5, 7), "--non-members must hold no image of the members, got 12 that are"),
        ((5, 6, 5), "--population must hold no image of the members, got 12 that are"),
        ((5, 6, 6), "--population must hold no image of the non-members, got 12 that are"),
    ],
)
def test_the_same_images_in_two_places_are_refused(ended, tmp_path, seeds, said):
    files = [saved(tmp_path / f"{i}.npz", train=seed) for i, seed in enumerate(seeds)]
    with pytest.raises(ValueError, match=said):
        real_images(Subject.of(ended.folder), *files)


def test_a_simulated_clients_images_are_no_non_members(ended, tmp_path):
    audited = Subject.of(ended.folder)
    data = read(audited.config.data, "train")
    train = data.images.transpose(0, 2, 3, 1)
    np.savez(tmp_path / "a.npz", train_images=train, train_labels=data.labels)
    members = len(subject.clients_images(audited))
    said = rf"of the members, got {members} that .*, of {len(data.labels)}; remove them"
    with pytest.raises(ValueError, match=said):
        real_images(audited, None, tmp_path / "a.npz", None)


def test_images_can_be_named(ended, tmp_path):
    for seed, name in enumerate(("mine", "others")):
        saved(tmp_path / f"{name}.npz", train=seed)
    audited = Subject.of(ended.folder)
    real = real_images(audited, tmp_path / "mine.npz", tmp_path / "others.npz", None)
    assert (len(real.members), len(real.non_members), len(real.population)) == (12, 6, 6)
    assert real.members.images.shape[1:] == (1, 16, 16)


def test_images_that_are_not_there_are_named_by_their_option(ended, tmp_path, capsys):
    gone = str(tmp_path / "gone")
    assert command.main([str(ended.folder), "--non-members", gone]) == 1
    assert capsys.readouterr().out.startswith(f"--non-members must exist, got '{gone}';")
    assert command.main([str(ended.folder), "--population", gone]) == 1
    assert capsys.readouterr().out.startswith(f"--population must exist, got '{gone}';")


def test_what_cannot_be_audited_is_said_in_a_sentence(tmp_path, capsys):
    assert command.main([str(tmp_path)]) == 1
    assert "RUN must be the folder of a finished run" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main([str(tmp_path), "--members", "x"])
    assert "--members needs --non-members" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main([str(tmp_path), "--references", "0"])
    assert "--references must be from 1 to 1000, got 0" in capsys.readouterr().err
