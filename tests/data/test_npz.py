"""Files of arrays and torchvision's own: a right result, or one sentence with the path."""

import gzip
import struct

import numpy as np
import pytest

from feddgm_flwr.data.datasets import _read, load
from feddgm_flwr.data.settings import DataConfig
from feddgm_flwr.federation.server_data import server_images

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8), np.uint8)
LABELS = np.array([0, 1, 0, 1, 0, 1])


def config(path, **said):
    said = {"class_names": "a,b", "channels": 1, "image_size": 8, **said}
    return DataConfig(name="npz", root=str(path), **said)


def saved(tmp_path, save=np.savez, **changed):
    path = tmp_path / "own.npz"
    parts = {"train_images": IMAGES, "train_labels": LABELS, **changed}
    save(path, **{k: v for k, v in parts.items() if v is not None})
    return path


def refused(path, match, part="train"):
    with pytest.raises(ValueError, match=match) as caught:
        load(config(path), part)
    said = str(caught.value)
    assert repr(str(path)) in said
    assert "\n" not in said
    assert ";" in said, "no remedy"
    return said


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (IMAGES, LABELS),
        (np.asfortranarray(IMAGES), LABELS),
        (IMAGES[..., None], LABELS),
        (np.repeat(IMAGES, 2, 2)[:, :, ::2], LABELS),
        *((IMAGES, LABELS.astype(kind)) for kind in (">i8", ">u2", "i1", "u8")),
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_variants_are_read_alike(tmp_path, images, labels, save):
    data = load(config(saved(tmp_path, save, train_images=images, train_labels=labels)), "train")
    np.testing.assert_array_equal((data.images[:, 0] * 255).round().byte().numpy(), IMAGES)
    assert data.labels.tolist() == LABELS.tolist()


def test_many_images_are_resized_as_few_are(tmp_path):
    many = np.random.default_rng(0).integers(0, 256, (300, 16, 16), np.uint8)
    path = saved(tmp_path, train_images=many, train_labels=np.zeros(300, int))
    whole = load(config(path), "train").images
    few = saved(tmp_path / "..", train_images=many[-2:], train_labels=np.zeros(2, int))
    assert whole[-2:].equal(load(config(few), "train").images)
    few.unlink()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"train_images": IMAGES / 255}, r"fractions of 0..1 by \(x \* 255\)"),
        ({"train_images": np.full((6, 8, 8), np.nan)}, "from nan to nan"),
        ({"train_images": IMAGES.astype("float16")}, "must be uint8"),
        ({"train_images": IMAGES.astype(np.uint16)}, "must be uint8"),
        ({"train_images": IMAGES > 99}, "must be uint8"),
        ({"train_images": IMAGES.astype(complex)}, "must be uint8"),
        ({"train_images": np.uint8(3)}, "must be uint8"),
        ({"train_images": IMAGES.reshape(6, 64)}, r"got uint8 \(6, 64\)"),
        ({"train_images": np.zeros((6, 0, 0), np.uint8)}, "must be uint8 of shape"),
        ({"train_images": np.zeros((6, 3, 8, 8), np.uint8)}, "must be uint8 of shape"),
        ({"train_images": np.zeros((6, 8, 8, 4), np.uint8)}, "must be uint8 of shape"),
        ({"train_images": IMAGES[:0], "train_labels": LABELS[:0]}, "at least 1 train image"),
        ({"train_images": np.array([{"a": 1}] * 6, object)}, "must be an array of numbers"),
        ({"train_labels": np.array(["a"] * 6, object)}, "must be an array of numbers"),
        ({"train_labels": LABELS.astype(float)}, r"astype\('int64'\)"),
        ({"train_labels": LABELS.astype(bool)}, "must be 6 integers"),
        ({"train_labels": LABELS.astype("m8[s]")}, "must be 6 integers"),
        ({"train_labels": LABELS.astype(str)}, "must be 6 integers"),
        ({"train_labels": LABELS[:, None]}, r"reshape\(-1\)"),
        ({"train_labels": np.float32(1)}, "must be 6 integers"),
        ({"train_labels": LABELS - 1}, "got -1 to 0"),
        ({"train_labels": LABELS.astype("u8") + 2**63}, "must be 0 to 1"),
        ({"train_labels": None}, r"add \['train_labels'\]"),
        ({"train_images": None}, r"add \['train_images'\]"),
        ({"train_images": None, "train_labels": None, "x": LABELS}, "add"),
    ],
)
def test_wrong_arrays_are_named(tmp_path, changed, said):
    refused(saved(tmp_path, **changed), said)


def test_an_object_array_is_never_unpickled(tmp_path, monkeypatch):
    path = saved(tmp_path, train_images=np.array([Trap()] * 6, object))
    Trap.sprung = False
    refused(path, "must be an array of numbers")
    assert not Trap.sprung


class Trap:
    sprung = False

    def __setstate__(self, state):
        Trap.sprung = True


def test_files_that_are_no_npz_are_named(tmp_path):
    path = tmp_path / "own.npz"
    path.touch()
    refused(path, "an empty file")
    with path.open("wb") as file:
        np.save(file, IMAGES)
    refused(path, r"a single array \(.npy\)")
    path.write_bytes(b"hello")
    refused(path, "another kind of file")
    path.unlink()
    path.mkdir()
    refused(path, "got the folder")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_truncated_npz_is_named(tmp_path, share, save):
    path = saved(tmp_path, save)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    refused(path, "one that is cut short")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_flipped_bytes_in_an_array_are_noticed(tmp_path, save):
    path = saved(tmp_path, save)
    data = bytearray(path.read_bytes())
    for i in range(250, 314):
        data[i] ^= 255
    path.write_bytes(bytes(data))
    refused(path, "array 'train_images' of .* must be an array of numbers")


def test_a_zip_of_other_files_is_named(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "own.npz", "w") as archive:
        archive.writestr("train_images", b"hello")
        archive.writestr("train_labels", b"hello")
    refused(tmp_path / "own.npz", "must be an array of numbers")


def test_layout_and_name_must_agree(tmp_path):
    path = saved(tmp_path)
    with pytest.raises(ValueError, match="must be a folder that holds a folder 'train'"):
        load(DataConfig(name="folder", root=str(path), class_names="a,b"), "train")


def test_a_server_does_without_a_part_that_is_absent_but_not_with_a_damaged_one(tmp_path):
    path = saved(tmp_path)
    assert server_images(config(path), "test") is None
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    half = saved(damaged, test_images=IMAGES)
    with pytest.raises(ValueError, match=r"add \['test_labels'\]"):
        server_images(config(half), "test")
    assert server_images(config(tmp_path / "gone.npz"), "test") is None


def idx(path, array, *, magic=0x800, cut=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">I{array.ndim}I", magic | array.ndim, *array.shape)
    path.write_bytes((header + array.tobytes())[:cut])


@pytest.fixture
def mnist(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    for part in ("train", "t10k"):
        idx(raw / f"{part}-images-idx3-ubyte", np.zeros((5, 28, 28), np.uint8))
        idx(raw / f"{part}-labels-idx1-ubyte", np.arange(5, dtype=np.uint8))
    return DataConfig(name="mnist", root=str(tmp_path)), raw


DAMAGES = {
    "cut": lambda file: idx(file, np.zeros((5, 28, 28), np.uint8), cut=1000),
    "cut in the head": lambda file: idx(file, np.zeros((5, 28, 28), np.uint8), cut=6),
    "empty": lambda file: file.write_bytes(b""),
    "wrong magic": lambda file: idx(file, np.zeros((5, 28, 28), np.uint8), magic=0x12345600),
    "of other kind": lambda file: idx(file, np.zeros((5, 28, 28), "f8"), magic=0xE00),
    "more images": lambda file: idx(file, np.zeros((6, 28, 28), np.uint8)),
    "other shape": lambda file: idx(file, np.zeros((5, 20, 20), np.uint8)),
    "packed": lambda file: file.write_bytes(gzip.compress(bytes(1000))),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_of_torchvisions_is_named_and_never_called_absent(mnist, damage):
    asked, raw = mnist
    assert len(server_images(asked, "test")) == 5
    DAMAGES[damage](raw / "t10k-images-idx3-ubyte")
    _read.cache_clear()
    with pytest.raises(ValueError, match="is damaged") as caught:
        server_images(asked, "test")
    assert str(raw) in str(caught.value)
    assert "t10k-images-idx3-ubyte" in str(caught.value)


def test_labels_beyond_the_classes_are_damage(mnist):
    asked, raw = mnist
    idx(raw / "t10k-labels-idx1-ubyte", np.full(5, 10, np.uint8))
    with pytest.raises(ValueError, match="labels are 10 to 10"):
        server_images(asked, "test")


def test_one_missing_file_of_torchvisions_is_named(mnist):
    asked, raw = mnist
    (raw / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match=r"lacks \['t10k-labels-idx1-ubyte'\]"):
        server_images(asked, "test")


def test_a_packed_file_that_is_cut_is_named(mnist):
    asked, raw = mnist
    for file in raw.iterdir():
        whole = gzip.compress(file.read_bytes())
        file.with_name(file.name + ".gz").write_bytes(whole[: len(whole) // 2])
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"without .*train-images-idx3-ubyte"):
        load(asked, "test")


def test_a_cifar_that_is_not_as_published_is_damage(tmp_path):
    home = tmp_path / "cifar-10-batches-py"
    home.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (home / name).write_bytes(b"broken")
    with pytest.raises(ValueError, match="is damaged") as caught:
        server_images(DataConfig(name="cifar10", root=str(tmp_path)), "test")
    assert str(home) in str(caught.value)
