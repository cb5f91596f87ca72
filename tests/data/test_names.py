"""Names of classes, folders and files: one meaning or one sentence, however they are spelt."""

import os
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from feddgm_flwr.data.datasets import load
from feddgm_flwr.data.names import is_skipped, loose, plain
from feddgm_flwr.data.partition import client_images
from feddgm_flwr.data.settings import DataConfig
from feddgm_flwr.priors.pretraining.sources import read_folder

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "Käse") for form in ("NFC", "NFD"))


def put(path: Path, shade: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), shade, np.uint8)).save(path, "PNG")


def own(home: Path, names: str) -> DataConfig:
    return DataConfig(name="folder", root=str(home), class_names=names, channels=1, image_size=8)


@given(st.text())
def test_a_name_is_plain_once_and_for_all(name):
    assert plain(plain(name)) == plain(name)
    assert loose(plain(name)) == loose(name) == loose(loose(name))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("a,b,a", "name each class once"),
        ("a,b, a ", "name each class once"),
        (f"{COMPOSED},{DECOMPOSED}", "name each class once"),
        ("ankle boot,ankle  boot", "name each class once"),
        ("a,b/c", "no slash"),
        ("a,b\x07c", "no line break or control character"),
        ("a,b\x00", "no line break or control character"),
        ("a,b\udcff", "no line break or control character"),
        ("a,.cache", "hidden or system"),
        ("a,..", "hidden or system"),
        ("a,Thumbs.db", "hidden or system"),
        ("a," + "x" * 256, "at most 255 bytes"),
        ("a," + "ä" * 128, "at most 255 bytes"),
    ],
)
def test_names_that_are_no_classes_are_refused(names, said):
    for name in ("folder", "npz"):
        with pytest.raises(ValueError, match=rf"data\.class-names must .*{said}"):
            DataConfig(name=name, class_names=names)


@pytest.mark.parametrize(
    "names", ["A,a", "a\\b,c", "$x_1$,{y}", "猫,😀", " a b ,c", "a,,b,", "x" * 255]
)
def test_other_names_are_classes(names):
    expected = tuple(n.strip() for n in names.split(",") if n.strip())
    assert DataConfig(name="folder", class_names=names).class_list == expected


def test_a_line_break_around_a_comma_is_none_of_a_name():
    assert DataConfig(name="folder", class_names="cat,\n dog").class_list == ("cat", "dog")


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        (DECOMPOSED, COMPOSED),
        (COMPOSED, DECOMPOSED),
        ("Cat", "cat"),
        (" cat ", "cat"),
        ("ankle  boot", "ankle boot"),
        (DECOMPOSED.upper(), COMPOSED),
    ],
)
def test_a_folder_that_can_mean_one_class_alone_is_that_class(tmp_path, folder, name):
    put(tmp_path / "train" / folder / "0.png")
    assert load(own(tmp_path, f"other,{name}"), "train").labels.tolist() == [1]


@pytest.mark.skipif(sys.platform == "darwin", reason="one folder for both names")
@pytest.mark.parametrize(
    ("one", "two"), [(COMPOSED, DECOMPOSED), ("cat", "Cat"), ("Cat", "CAT"), ("cat", "cat ")]
)
def test_two_folders_of_one_class_are_refused(tmp_path, one, two):
    for folder in (one, two):
        put(tmp_path / "train" / folder / "0.png")
    with pytest.raises(ValueError, match=r"are both of the class .* put their pictures into one"):
        load(own(tmp_path, f"{COMPOSED},cat"), "train")


def test_capitals_tell_classes_apart_where_they_must(tmp_path):
    put(tmp_path / "train" / "A" / "0.png")
    put(tmp_path / "train" / "a" / "0.png")
    assert load(own(tmp_path, "a,A"), "train").labels.tolist() == [0, 1]


def test_a_folder_that_may_mean_two_classes_is_of_neither(tmp_path):
    put(tmp_path / "train" / "ÄB" / "0.png")
    with pytest.raises(ValueError, match="must be of the classes"):
        load(own(tmp_path, "äb,Äb"), "train")


HIDDEN = [".cache", ".ipynb_checkpoints", "__MACOSX", "@eaDir", ".DS_Store"]
FILES = ["._0.png", ".hidden.png", "Thumbs.db", "desktop.ini", "DESKTOP.INI", "Icon\r"]


@pytest.fixture
def littered(tmp_path):
    for part in ("train", "test"):
        put(tmp_path / part / "cat" / "0.PNG", 10)
        put(tmp_path / part / "dog" / "deep" / "er" / "1.JPeG", 20)
        for name in HIDDEN:
            put(tmp_path / part / name / "0.png")
            put(tmp_path / part / "cat" / name / "0.png")
        for name in FILES:
            (tmp_path / part / "dog" / name).write_bytes(b"no picture")
    return tmp_path


def test_hidden_and_system_files_are_skipped_everywhere(littered):
    clients = load(own(littered, "cat,dog"), "train")
    assert clients.labels.tolist() == [0, 1]
    assert [round(float(x.mean()) * 255) for x in clients.images] == [10, 20]
    pretraining = read_folder(littered / "train", channels=1, size=8)
    assert pretraining.classes == ("cat", "dog")
    assert pretraining.pixels.flatten(1)[:, 0].tolist() == [10, 20]


@pytest.mark.parametrize("name", HIDDEN + FILES)
def test_what_is_skipped(name):
    assert is_skipped(name)
    assert not is_skipped("cat.png")


def test_a_link_to_a_folder_within_a_class_is_refused_not_followed(tmp_path):
    put(tmp_path / "train" / "cat" / "0.png")
    (tmp_path / "train" / "cat" / "round").symlink_to(tmp_path / "train")
    with pytest.raises(ValueError, match="is a folder or a link to one"):
        load(own(tmp_path, "cat"), "train")


def test_a_folder_that_cannot_be_listed_is_a_sentence(tmp_path, monkeypatch):
    put(tmp_path / "train" / "cat" / "0.png")
    true = os.scandir

    def forbid(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return true(path)

    monkeypatch.setattr(os, "scandir", forbid)
    with pytest.raises(ValueError, match=r"cat' must be readable"):
        load(own(tmp_path, "cat"), "train")
    with pytest.raises(ValueError, match="Permission denied"):
        read_folder(tmp_path / "train", channels=1, size=8)


@pytest.mark.skipif(sys.platform == "darwin", reason="one folder for both names")
def test_pretraining_refuses_two_folders_of_one_name(tmp_path):
    for folder in (COMPOSED, DECOMPOSED):
        put(tmp_path / folder / "0.png")
    with pytest.raises(ValueError, match="name each class once"):
        read_folder(tmp_path, channels=1, size=8)


def test_pretraining_refuses_a_file_that_is_no_picture(tmp_path):
    put(tmp_path / "cat" / "0.png")
    (tmp_path / "cat" / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"notes\.txt' must be a picture"):
        read_folder(tmp_path, channels=1, size=8)


def test_pretraining_and_clients_read_the_same_pixels(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    (tmp_path / "train" / "cat").mkdir(parents=True)
    Image.fromarray(noise).save(tmp_path / "train" / "cat" / "0.png")
    for channels in (1, 3):
        config = DataConfig(
            name="folder", root=str(tmp_path), class_names="cat", channels=channels, image_size=8
        )
        theirs = read_folder(tmp_path / "train", channels=channels, size=8).pixels
        assert (load(config, "train").images * 255).round().byte().equal(theirs)


def of_device(path, **said):
    return client_images(
        DataConfig(**said), "train", partition_id=0, num_partitions=0, seed=0, data_dir=path
    )


def test_a_devices_owner_is_told_what_he_can_change(tmp_path):
    home = tmp_path / "own"
    put(home / "train" / "eleven" / "0.png")
    (tmp_path / "empty" / "train").mkdir(parents=True)
    (tmp_path / "partless").mkdir()
    np.savez(tmp_path / "float.npz", train_images=np.zeros((2, 9, 9)), train_labels=[0, 1])
    colour, grey = np.zeros((2, 9, 9, 3), np.uint8), np.zeros((2, 9, 9), np.uint8)
    np.savez(tmp_path / "colour.npz", train_images=colour, train_labels=np.array([0, 1]))
    np.savez(tmp_path / "labels.npz", train_images=grey, train_labels=np.array([0, 10]))
    (tmp_path / "list.txt").write_text("hello")
    cases = [
        "own",
        "empty",
        "partless",
        "float.npz",
        "colour.npz",
        "labels.npz",
        "gone",
        "list.txt",
    ]
    for path in (*(tmp_path / case for case in cases), Path("relative")):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            of_device(path)
        said = str(caught.value)
        assert str(path) in said
        assert ";" in said
        for word in ("data.", "-c", "class-names"):
            assert word not in said.replace("--node-config", "").replace("node-config", ""), said


def test_an_npz_of_any_suffix_and_a_folder_of_any_name_are_taken_for_what_they_are(tmp_path):
    images, labels = np.zeros((2, 28, 28), np.uint8), np.array([0, 1])
    for name in ("own.NPZ", "own.zip", "own"):
        with (tmp_path / name).open("wb") as file:
            np.savez(file, train_images=images, train_labels=labels)
        assert of_device(tmp_path / name).labels.tolist() == [0, 1]
    put(tmp_path / "folder.npz" / "train" / "7" / "0.png")
    assert of_device(tmp_path / "folder.npz").labels.tolist() == [7]
