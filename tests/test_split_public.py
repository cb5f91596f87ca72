"""The honest split: what is public, the judge's and the clients' share no picture."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from split_public import divide, main

PARTS = ("public", "judge", "clients")


def write(path, copies=True):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 4, 4, 3)).astype(np.uint8)
    tests = rng.integers(0, 256, (9, 4, 4, 3)).astype(np.uint8)
    if copies:
        images[30:36] = images[:6]  # of the same classes, since 30 is a multiple of 3
        tests[:3] = images[6:9]
    np.savez(
        path, train_images=images, train_labels=np.arange(60) % 3,
        test_images=tests, test_labels=np.arange(9) % 3,
    )  # fmt: skip
    return path


def keys(images):
    return {image.tobytes() for image in images}


def test_no_picture_is_in_two_parts_or_among_the_tests(tmp_path):
    main(
        [str(write(tmp_path / "data.npz")), str(tmp_path / "out"), "--public", "4", "--judge", "3"]
    )
    found = {name: np.load(tmp_path / "out" / f"{name}.npz") for name in PARTS}
    seen = [keys(found[name]["train_images"]) for name in PARTS]
    seen.append(keys(found["clients"]["test_images"]))
    assert len(set.union(*seen)) == sum(map(len, seen))
    assert np.bincount(found["public"]["train_labels"]).tolist() == [4] * 3
    assert np.bincount(found["judge"]["train_labels"]).tolist() == [3] * 3
    assert len(found["clients"]["test_images"]) == 9


def test_without_copies_nothing_is_lost_and_the_seed_decides(tmp_path):
    with np.load(write(tmp_path / "data.npz", copies=False)) as data:
        images, labels = data["train_images"], data["train_labels"]
    first, again, other = (divide(images, labels, (4, 3), seed=seed) for seed in (0, 0, 1))
    assert sorted(np.concatenate(first).tolist()) == list(range(60))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    assert (labels[first[0]] == np.arange(60)[first[0]] % 3).all()


def test_a_class_that_would_leave_clients_nothing_is_refused(tmp_path):
    with np.load(write(tmp_path / "data.npz")) as data, pytest.raises(ValueError, match="class 0"):
        divide(data["train_images"], data["train_labels"], (18, 0), seed=0)


def test_a_set_that_comes_with_the_installation_is_divided_too(tmp_path):
    main(["digits", str(tmp_path), "--public", "1", "--judge", "20"])
    judge, clients = (np.load(tmp_path / f"{name}.npz") for name in ("judge", "clients"))
    assert judge["train_images"].shape[0] == 200
    assert judge["train_images"].dtype == np.uint8
    assert len(clients["test_labels"]) == 359
