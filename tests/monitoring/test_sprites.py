"""Laws of sprites: each cell is the image that its event names, and no picture ends a run."""

import logging

import numpy as np
import pytest
import torch
from inprocess_run import run, same_models
from PIL import Image

from feddgm_flwr.core.distillation.glimpse import Glimpse, glimpse, moments
from feddgm_flwr.core.synthetic import SyntheticSet
from feddgm_flwr.events import GrowthWritten, SpriteWritten
from feddgm_flwr.monitoring.sprites import Sprites, sheet, spread


def shades(values, side=4, channels=1):
    """Return plain images, each of one grey."""
    greys = torch.tensor(values, dtype=torch.float32) / 255
    return greys[:, None, None, None].expand(-1, channels, side, side).clone()


def fresh(values, owners, labels, **shape):
    return SyntheticSet(
        shades(values, **shape),
        torch.eye(10)[labels],
        torch.arange(len(values)) + 0.5,
        torch.tensor(owners),
    )


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def cell(path, number, *, side, across):
    """Return one cell of a sprite."""
    top, left = side * (number // across), side * (number % across)
    return pixels(path)[top : top + side, left : left + side]


@pytest.fixture
def told():
    return []


def test_each_cell_is_the_image_that_the_event_names(tmp_path, told):
    sprites = Sprites(tmp_path, told.append, images=9, room_mb=1.0)
    sprites.draw(7, fresh([10, 20, 30, 40, 50], owners=[1, 0, 1, 0, 0], labels=[3, 3, 2, 2, 3]))
    [event] = told
    assert event == SpriteWritten(
        round=7,
        path="images/sprite_0007.png",
        side=4,
        across=3,
        owners=(0, 0, 0, 1, 1),
        labels=(2, 3, 3, 2, 3),
        weights=(3.5, 1.5, 4.5, 2.5, 0.5),
        num_images=5,
    )
    for number, grey in enumerate([40, 20, 50, 30, 10, 0]):
        shown = cell(tmp_path / event.path, number, side=4, across=3)
        assert (shown == grey).all()


def test_a_large_image_is_shown_small_and_in_colours(tmp_path, told):
    sprites = Sprites(tmp_path, told.append, images=9, room_mb=1.0)
    sprites.draw(1, fresh([200], owners=[0], labels=[0], side=130, channels=3))
    assert told[0].side == 44  # every third pixel: at most 64 a side
    assert pixels(tmp_path / told[0].path).shape == (44, 44, 3)


def test_too_many_images_are_spread_over_clients_and_classes():
    owners = np.repeat(np.arange(4), 6)
    labels = np.tile(np.repeat(np.arange(3), 2), 4)
    assert len(spread(owners, labels, 24)) == 24
    # Twelve pairs, an image of each: the first of the two.
    assert spread(owners, labels, 12).tolist() == list(range(0, 24, 2))
    few = spread(owners, labels, 5)
    assert len(few) == 5
    assert set(owners[few]) == {0, 1, 2, 3}
    assert len(spread(owners, labels, 0)) == 0


def test_a_client_grows_downwards_whatever_order_it_is_told_in(tmp_path, told):
    sprites = Sprites(tmp_path, told.append, images=9, room_mb=1.0)
    for iteration in (0, 10, 5, 5):
        pictures = np.full((2, 4, 4, 1), 10 + iteration, np.uint8)
        sprites.show(3, 12, Glimpse(iteration=iteration, labels=(1, 4), pictures=pictures))
    assert told[-1] == GrowthWritten(
        round=3,
        path="images/growth_0003_12.png",
        side=4,
        partition_id=12,
        labels=(1, 4),
        iterations=(0, 5, 10),
    )
    column = [cell(tmp_path / told[-1].path, 2 * i, side=4, across=2)[0, 0] for i in range(3)]
    assert column == [10, 15, 20]
    sprites.show(
        4, 12, Glimpse(iteration=0, labels=(1,), pictures=np.zeros((1, 4, 4, 1), np.uint8))
    )
    assert told[-1].iterations == (0,)


def test_when_their_room_is_used_up_no_more_are_written_and_it_is_said_once(tmp_path, told, caplog):
    caplog.set_level(logging.WARNING)
    one = len(sheet(np.zeros((1, 4, 4, 1), np.uint8), 1))
    for _ in range(2):  # and what an interrupted run has written counts after a resume
        sprites = Sprites(tmp_path, told.append, images=9, room_mb=2.5 * one / 1e6)
        for number in (1, 2, 3, 4):
            sprites.draw(number, fresh([0], owners=[0], labels=[0]))
    assert [e.round for e in told] == [1, 2, 1, 2]
    assert len(list((tmp_path / "images").iterdir())) == 2
    assert len({r.message for r in caplog.records}) == 1
    assert "watch.pictures-mb" in caplog.messages[0]


def test_no_sprite_ends_a_run(tmp_path, told, caplog):
    (tmp_path / "images").write_text("in the way")
    sprites = Sprites(tmp_path, told.append, images=9, room_mb=1.0)
    sprites.draw(1, fresh([0], owners=[0], labels=[0]))
    sprites.show(1, 0, Glimpse(iteration=0, labels=(0,), pictures=np.zeros((1, 4, 4, 1), np.uint8)))
    assert told == []
    assert "no images/sprite_0001.png" in caplog.text
    assert "no images/growth_0001_0.png" in caplog.text


def test_a_full_disk_is_told_once_a_round_and_growth_goes_on_after_it(tmp_path, told, caplog):
    sprites = Sprites(tmp_path, told.append, images=9, room_mb=1.0)
    picture = np.zeros((1, 4, 4, 1), np.uint8)
    (tmp_path / "images").touch()  # no folder can be made there
    for client in range(3):
        sprites.show(1, client, Glimpse(0, (3,), picture))
    assert caplog.text.count("the run goes on without it") == 1
    (tmp_path / "images").unlink()
    sprites.show(1, 3, Glimpse(0, (3,), picture))
    assert told == []
    sprites.show(2, 0, Glimpse(0, (3,), picture))
    assert [(e.round, e.partition_id) for e in told] == [(2, 0)]


def test_a_glimpse_takes_an_image_of_each_class_before_a_second():
    labels = torch.tensor([5, 5, 5, 2, 2])
    seen = glimpse(shades([1, 2, 3, 4, 5]), labels, iteration=7, count=3)
    assert (seen.iteration, seen.labels) == (7, (2, 5, 2))
    assert seen.pictures[:, 0, 0, 0].tolist() == [4, 1, 5]
    assert [sorted(moments(n)) for n in (1, 2, 100)] == [[0], [0, 1], [0, 25, 50]]


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_a_run_draws_what_grows_and_its_numbers_stay_the_same(tmp_path, engine):
    said = {"distill__iterations": 8, "distill__engine": engine}
    plain = run(tmp_path / "plain", **said)
    drawn = run(tmp_path / "drawn", pictures=True, **said)
    assert drawn.numbers() == plain.numbers()
    assert same_models(drawn.models, plain.models)
    assert not (tmp_path / "plain" / "images").exists() or not list(
        (tmp_path / "plain" / "images").glob("*_*.png")
    )
    last = {e["path"]: e for e in drawn.of("growth-written") if e["round"] == 1}
    assert sorted(last) == [f"images/growth_0001_{i}.png" for i in range(3)]
    for path, event in last.items():
        assert event["iterations"] == [0, 2, 4, 8]
        assert len(event["labels"]) == 2
        side = event["side"]
        assert pixels(drawn.folder / path).shape == (4 * side, 2 * side)
    assert [e["num_images"] for e in drawn.of("sprite-written")] == [
        sum(d["num_images"] for d in r["distilled"]) for r in drawn.rounds
    ]
