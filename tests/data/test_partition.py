"""Partitions: disjoint, covering, seeded, and skewed as asked."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feddgm_flwr.data.datasets import load, read
from feddgm_flwr.data.partition import client_images, counts, deal, own_source, partition
from feddgm_flwr.data.settings import DataConfig

LABELS = np.repeat(np.arange(10), 60)
SEEDS = st.integers(0, 2**31)


def config(kind: str = "dirichlet", **said) -> DataConfig:
    return DataConfig(partition=kind, **said)


def assert_partition(parts: list[np.ndarray], n: int) -> None:
    """Disjoint and covering, each sorted and none empty."""
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    assert all(len(p) and (np.diff(p) > 0).all() for p in parts)


@given(
    st.lists(st.integers(0, 5), min_size=20, max_size=200),
    st.integers(1, 10),
    SEEDS,
)
def test_iid_parts_are_disjoint_cover_and_differ_by_one_at_most(labels, clients, seed):
    labels = np.array(labels)
    parts = partition(labels, config("iid"), num_clients=clients, seed=seed)
    assert_partition(parts, len(labels))
    sizes = [len(p) for p in parts]
    assert max(sizes) - min(sizes) <= 1


@settings(deadline=None)
@given(st.sampled_from([0.01, 0.1, 1.0, 100.0]), st.integers(1, 10), SEEDS)
def test_dirichlet_parts_are_disjoint_cover_and_reach_the_minimum(alpha, clients, seed):
    asked = config(alpha=alpha, min_examples=7)
    parts = partition(LABELS, asked, num_clients=clients, seed=seed)
    assert_partition(parts, len(LABELS))
    assert min(len(p) for p in parts) >= 7


@given(st.integers(1, 10), st.integers(1, 12), SEEDS)
def test_class_parts_hold_k_classes_and_cover_all_that_they_can(each, clients, seed):
    asked = config("classes", classes_per_client=each)
    parts = partition(LABELS, asked, num_clients=clients, seed=seed)
    owned = counts(parts, LABELS, 10) > 0
    assert (owned.sum(1) == each).all()
    owners = owned.sum(0)
    assert (owners > 0).sum() == min(10, each * clients)
    assert owners.max() - owners.min() <= 1
    covered = np.flatnonzero(np.isin(LABELS, np.flatnonzero(owners)))
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), covered)


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "classes"])
def test_same_seed_same_parts_and_another_seed_others(kind):
    a, b, c = (partition(LABELS, config(kind), num_clients=5, seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert any(not np.array_equal(x, y) for x, y in zip(a, c, strict=True))


def test_a_smaller_alpha_is_more_skewed():
    def largest_share(alpha: float) -> float:
        shares = []
        for seed in range(10):
            parts = partition(LABELS, config(alpha=alpha), num_clients=5, seed=seed)
            owned = counts(parts, LABELS, 10)
            shares.append((owned.max(1) / owned.sum(1)).mean())
        return float(np.mean(shares))

    skew = [largest_share(alpha) for alpha in (0.05, 0.5, 50.0)]
    assert skew[0] > skew[1] > skew[2]
    assert skew[2] == pytest.approx(0.1, abs=0.03)


def test_dirichlet_leaves_nobody_a_stray_image_of_every_class():
    # Cuts that were floored gave the last client one image of each class.
    owned = [
        counts(partition(LABELS, config(alpha=0.05), num_clients=10, seed=s), LABELS, 10)
        for s in range(20)
    ]
    classes = np.mean([(o > 0).sum(1) for o in owned], axis=0)
    assert classes[-1] < 1.5 * classes[:-1].mean()


@pytest.mark.parametrize("alpha", [1e-300, 1e-6])
def test_a_vanishing_alpha_still_divides(alpha):
    asked = config(alpha=alpha, min_examples=1)
    assert_partition(partition(LABELS, asked, num_clients=5, seed=0), len(LABELS))


def test_a_minimum_beyond_the_images_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"data.min-examples = 61 .* lower the first"):
        partition(LABELS, config(min_examples=61), num_clients=10, seed=0)


def test_a_minimum_that_no_draw_reaches_is_refused():
    labels, asked = LABELS[LABELS < 3], config(alpha=0.01, min_examples=18)
    with pytest.raises(ValueError, match="no Dirichlet partition of 180 images"):
        partition(labels, asked, num_clients=10, seed=0)


def test_more_classes_a_client_than_there_are_is_refused():
    with pytest.raises(ValueError, match="classes-per-client must be at most 10"):
        partition(LABELS, config("classes", classes_per_client=11), num_clients=2, seed=0)


@pytest.mark.parametrize("kind", ["iid", "classes"])
def test_a_client_left_with_nothing_is_refused(kind):
    with pytest.raises(ValueError, match="use fewer clients"):
        partition(LABELS[:3], config(kind, classes_per_client=1), num_clients=5, seed=0)


def test_counts_by_hand():
    parts = [np.array([0, 1, 4]), np.array([2, 3])]
    table = counts(parts, np.array([0, 2, 1, 1, 2]), 4)
    np.testing.assert_array_equal(table, [[1, 0, 2, 0], [0, 2, 0, 0]])


def test_deal_gives_each_owner_of_a_class_the_same_share():
    owners = np.array([[True, False], [True, True], [True, False]])
    labels = np.repeat([0, 1], [10, 4])
    parts = deal(labels, owners, np.random.default_rng(0))
    table = counts(parts, labels, 2)
    assert sorted(table[:, 0]) == [3, 3, 4]
    np.testing.assert_array_equal(table[:, 1], [0, 4, 0])


def test_all_clients_together_own_the_training_images_once():
    data = DataConfig(alpha=0.1)
    own = [
        client_images(data, "train", partition_id=i, num_partitions=10, seed=3) for i in range(10)
    ]
    assert sum(len(s) for s in own) == 4000
    pictures = {x.numpy().tobytes() for s in own for x in s.images}
    assert pictures == {x.numpy().tobytes() for x in load(data, "train").images}


def test_a_clients_test_images_are_of_its_classes_and_nobody_elses():
    data = DataConfig(partition="classes", classes_per_client=2)

    def of(part, i):
        return client_images(data, part, partition_id=i, num_partitions=10, seed=3)

    tests = [of("test", i) for i in range(10)]
    assert sum(len(s) for s in tests) == 1000
    assert len({x.numpy().tobytes() for s in tests for x in s.images}) == len(
        {x.tobytes() for x in read(data, "test").images}
    )
    for i, own in enumerate(tests):
        assert set(own.labels.tolist()) == set(of("train", i).labels.tolist())
        assert len(own) == 100


@pytest.mark.parametrize("partition_id", [-1, 10])
def test_a_partition_that_does_not_exist_is_refused(partition_id):
    with pytest.raises(ValueError, match=r"must be in \[0, 10\)"):
        client_images(DataConfig(), "train", partition_id=partition_id, num_partitions=10, seed=0)


@pytest.mark.parametrize("layout", ["folder", "npz"])
def test_a_device_with_its_own_data_is_not_partitioned(tmp_path: Path, layout):
    # Two threes and a seven, larger than MNIST and in colour where the layout converts.
    from PIL import Image

    home = tmp_path / "own"
    if layout == "folder":
        for name, count in (("3", 2), ("7", 1)):
            (home / "train" / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (40, 40), (9, 9, 9)).save(home / f"train/{name}/{i}.png")
    else:
        home = home.with_suffix(".npz")
        np.savez(
            home,
            train_images=np.full((3, 40, 40), 9, np.uint8),
            train_labels=np.array([3, 3, 7]),
        )
    own = client_images(
        DataConfig(), "train", partition_id=0, num_partitions=10, seed=0, data_dir=home
    )
    assert own.labels.tolist() == [3, 3, 7]
    assert own.images.shape == (3, 1, 28, 28)
    assert float(own.images.mean()) == pytest.approx(9 / 255, abs=1e-3)


@pytest.mark.parametrize("download", [False, True])
def test_own_data_that_are_not_there_are_said_to_be_missing(tmp_path, download):
    config = DataConfig(name="mnist", root=str(tmp_path), download=download)
    with pytest.raises(FileNotFoundError, match=r"data-dir must exist, got .*missing"):
        client_images(
            config,
            "train",
            partition_id=0,
            num_partitions=10,
            seed=0,
            data_dir=tmp_path / "missing",
        )


def test_own_data_take_on_the_runs_classes_and_size():
    source = own_source(DataConfig(name="cifar10"), Path("/data/own"))
    assert (source.name, source.channels, source.image_size) == ("folder", 3, 32)
    assert source.class_list[:2] == ("airplane", "automobile")
