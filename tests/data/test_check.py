"""``feddgm-check`` says what a client would see, and all that it would refuse."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from feddgm_flwr.data import check
from feddgm_flwr.data.partition import client_images
from feddgm_flwr.data.settings import DataConfig

RNG = np.random.default_rng(0)


def noise(height=20, width=30, channels=3):
    return RNG.integers(0, 256, (height, width, channels), np.uint8)


def put(path, picture=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(noise()) if picture is None else picture
    picture.save(path)


@pytest.fixture
def home(tmp_path):
    home = tmp_path / "own"
    for i in range(3):
        put(home / "train" / "cat" / f"{i}.png")
    put(home / "train" / "dog" / "0.jpg", Image.fromarray(noise(100, 200)))
    put(home / "train" / "dog" / "1.png", Image.fromarray(noise()[..., 0]))
    put(home / "test" / "dog" / "0.png")
    return home


def run(capsys, *arguments):
    code = check.main(list(map(str, arguments)))
    return code, capsys.readouterr().out


def test_good_data_are_described(home, capsys):
    code, said = run(capsys, home, "--classes", "cat,dog", "--size", 16, "--channels", 3)
    assert code == 0
    lines = said.splitlines()
    assert lines[0] == f"{str(home)!r} read as a client would, at 16 x 16 colour."
    assert "train: 5 images, 0 faults" in lines
    assert "  sizes: smallest 30 x 20, median 30 x 20, largest 200 x 100 pixels" in lines
    assert "  kinds: RGB (4), L (1)" in lines
    table = [line.split() for line in lines[lines.index("class  train  test") :][:3]]
    assert table == [["class", "train", "test"], ["cat", "3", "0"], ["dog", "2", "1"]]
    assert lines[-1] == "A client could train and be tested on these data."
    assert "You did not say" not in said


def test_without_options_the_datas_own_are_taken_and_that_is_said(home, capsys):
    code, said = run(capsys, home)
    assert code == 0
    assert "You did not say --classes or --size or --channels" in said


def test_every_fault_is_told_not_the_first_alone(home, capsys):
    (home / "train" / "cat" / "notes.txt").write_text("hello")
    (home / "train" / "cat" / "empty.png").touch()
    put(home / "train" / "fish" / "0.png")
    floats = Image.fromarray(np.full((8, 8), 9, np.float32))
    put(home / "test" / "dog" / "odd.tif", floats)
    code, said = run(capsys, home, "--classes", "cat,dog")
    assert code == 1
    assert "train: 5 images, 3 faults" in said
    for name in ("notes.txt", "empty.png", "fish", "odd.tif"):
        assert name in said
    assert said.rstrip().endswith("A client could NOT train on these data: see the faults above.")


def test_a_fault_of_the_test_part_leaves_training(home, capsys):
    (home / "test" / "dog" / "notes.txt").write_text("hello")
    code, said = run(capsys, home)
    assert code == 0
    assert "but not be tested on them" in said


def test_copies_are_told(home, capsys):
    same = (home / "train" / "cat" / "0.png").read_bytes()
    (home / "train" / "dog" / "again.png").write_bytes(same)
    (home / "test" / "dog" / "again.png").write_bytes(same)
    _, said = run(capsys, home)
    assert "Copies: 1 image there more than once" in said
    assert "1 of them in train and in test, such as" in said
    assert "1 of them under two classes, such as" in said


def test_pictures_of_one_colour_and_names_read_otherwise_are_told(home, capsys):
    put(home / "train" / "cat" / "white.png", Image.new("L", (9, 9), 255))
    (home / "train" / "cat").rename(home / "train" / "Cat ")
    _, said = run(capsys, home, "--classes", "cat,dog")
    assert "1 image of one single colour, such as" in said
    assert "folder 'Cat ' is taken for the class 'cat'" in said


@pytest.mark.parametrize(("channels", "shape"), [(1, (5, 9, 9)), (3, (5, 9, 9, 3))])
def test_an_npz_is_described(tmp_path, capsys, channels, shape):
    file = tmp_path / "own.npz"
    images = RNG.integers(0, 256, shape, np.uint8)
    np.savez(file, train_images=images, train_labels=np.array([0, 1, 2, 2, 2]))
    code, said = run(capsys, file, "--sheet", tmp_path / "sheet.png")
    assert code == 0
    assert f"at 9 x 9 {'grey' if channels == 1 else 'colour'}" in said
    assert "test: not there." in said
    assert "2          3     0" in said
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_both_faults_of_an_npz_are_told(tmp_path, capsys):
    file = tmp_path / "own.npz"
    np.savez(file, train_images=np.zeros((2, 9, 9)), train_labels=np.array([0.0, 1.0]))
    code, said = run(capsys, file)
    assert code == 1
    assert "must be uint8" in said
    assert "must be 2 integers" in said


@pytest.mark.parametrize("label", [1000, 10**12, 2**63])
def test_a_label_beyond_all_sense_is_one_sentence(tmp_path, capsys, label):
    file = tmp_path / "own.npz"
    images = RNG.integers(0, 256, (2, 9, 9), np.uint8)
    np.savez(file, train_images=images, train_labels=np.array([0, label], np.uint64))
    code, said = run(capsys, file)
    assert code == 1
    assert said == (
        f"labels of {str(file)!r} must be 0 to 999 unless --classes names the classes, got "
        f"{label}; correct them or say --classes\n"
    )
    code, said = run(capsys, file, "--classes", "a,b")
    assert code == 1
    assert f"must be 0 to 1, got 0 to {label}" in said


def test_classes_beyond_a_hundred_are_counted_together(tmp_path, capsys):
    file = tmp_path / "own.npz"
    images = RNG.integers(0, 256, (6, 9, 9), np.uint8)
    labels = np.array([0, 99, 100, 101, 998, 999])
    np.savez(file, train_images=images, train_labels=labels)
    for count, names in ((1000, ()), (5000, ("--classes", ",".join(map(str, range(5000)))))):
        code, said = run(capsys, file, *names)
        assert code == 0
        table = [line.split() for line in said.splitlines()]
        assert ["99", "1", "0"] in table
        assert [f"({count - 100}", "more)", "4", "0"] in table
        assert len(table) < 120


@pytest.mark.parametrize("kind", ["gone", "empty", "flat", "text", "npz folder"])
def test_what_holds_no_data_is_told(tmp_path, capsys, kind):
    path = tmp_path / "own"
    match kind:
        case "empty":
            path.mkdir()
        case "flat":
            put(path / "cat" / "0.png")
        case "text":
            path.write_text("hello")
        case "npz folder":
            path = tmp_path / "own.npz"
            path.mkdir()
    code, said = run(capsys, path)
    assert code == 1
    assert str(path) in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "bad", [["--classes", "a,b,a"], ["--classes", " , "], ["--size", "2"], ["--channels", "2"]]
)
def test_impossible_options_are_refused(home, capsys, bad):
    with pytest.raises(SystemExit):
        check.main([str(home), *bad])
    assert "error: " in capsys.readouterr().err


def test_a_folder_whose_name_cannot_be_a_class_is_told(home, capsys):
    put(home / "train" / "a,b" / "0.png")
    code, said = run(capsys, home)
    assert code == 1
    assert "no comma within a name, but 'a,b' does" in said


def test_the_sheet_shows_every_class_under_its_name(home, capsys):
    sheet = home.parent / "sheet.png"
    put(home / "train" / "$x_1$ ^{猫" / "0.png")
    code, said = run(capsys, home, "--sheet", sheet)
    assert code == 0
    assert f"drawn: {sheet}" in said
    with Image.open(sheet) as picture:
        assert min(picture.size) > 100
    code, said = run(capsys, home, "--sheet", home / "train" / "cat" / "0.png" / "x.png")
    assert code == 0
    assert "no sheet at" in said


@pytest.mark.parametrize("spoil", [None, "text", "float", "unknown", "empty", "two"])
def test_the_check_and_a_client_agree(home, capsys, spoil):
    names = "cat,dog"
    match spoil:
        case "text":
            (home / "train" / "cat" / "notes.txt").write_text("hello")
        case "float":
            put(home / "train" / "cat" / "x.tif", Image.fromarray(np.full((8, 8), 9, np.float32)))
        case "unknown":
            names = "cat,horse"
        case "empty":
            names, home = "cat,dog", home.parent / "nothing"
            (home / "train").mkdir(parents=True)
        case "two":
            put(home / "train" / "CAT" / "0.png")
    config = DataConfig(name="folder", root="/none", class_names=names)
    try:
        client_images(config, "train", partition_id=0, num_partitions=0, seed=0, data_dir=home)
        takes = True
    except ValueError:
        takes = False
    code, _ = run(capsys, home, "--classes", names)
    assert (code == 0) == takes
    assert takes == (spoil is None)


@pytest.mark.slow
def test_the_command_imports_no_flower_and_says_names_in_any_terminal(home):
    put(home / "train" / "Käse 猫" / "0.png")
    program = (
        "import sys\nfrom feddgm_flwr.data.check import main\n"
        f"code = main([{str(home)!r}])\n"
        "sys.exit(code or ('flwr' in sys.modules and 'Flower'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        env={
            "PYTHONPATH": ":".join(sys.path),
            "PYTHONIOENCODING": "ascii",
            "PATH": "/usr/bin:/bin",
        },
    )
    assert done.returncode == 0, done.stderr
    assert b"K\\xe4se" in done.stdout
