"""Augmentation: its gradients, its invariances, and what each operation does."""

import pytest
import torch

from feddgm_flwr.core.augment import ALL_NAMES, DRAWS, augment, fitting
from feddgm_flwr.core.seeding import derive

ALL = "color_crop_cutout_flip_scale_rotate"
EACH = [*DRAWS, ALL]


def images(n: int = 3, c: int = 3, side: int = 8, dtype=torch.float64) -> torch.Tensor:
    return torch.rand(n, c, side, side, generator=derive(0, "images"), dtype=dtype)


def out(x: torch.Tensor, names: str, *, seed: int = 0, siamese: bool = False):
    return augment(x, names, rng=derive(seed, "augment"), siamese=siamese)


@pytest.mark.parametrize("siamese", [False, True])
@pytest.mark.parametrize("names", EACH)
def test_first_and_second_derivatives_are_right(names, siamese):
    x = images(2, 2, 6).requires_grad_()
    # Seen through a square, so that the second derivative is not zero throughout.
    squared = lambda x: out(x, names, siamese=siamese) ** 2  # noqa: E731
    assert torch.autograd.gradcheck(squared, (x,))
    assert torch.autograd.gradgradcheck(squared, (x,))


@pytest.mark.parametrize("names", EACH)
def test_one_draw_treats_equal_images_equally(names):
    same = images(1).expand(4, -1, -1, -1)
    torch.testing.assert_close(
        out(same, names, siamese=True),
        out(same[:1], names, siamese=True).expand_as(same),
    )


@pytest.mark.parametrize("names", EACH)
def test_own_draws_treat_equal_images_differently(names):
    same = images(1, side=16).expand(32, -1, -1, -1)
    different = out(same, names)
    assert any(not torch.equal(different[0], d) for d in different[1:])


@pytest.mark.parametrize("names", EACH)
def test_siamese_result_of_a_batch_is_that_of_its_images(names):
    x = images(3)
    alone = [out(x[i : i + 1], names, siamese=True) for i in range(3)]
    torch.testing.assert_close(out(x, names, siamese=True), torch.cat(alone))


def test_no_names_return_the_images_themselves_and_draw_nothing():
    x, rng = images(), derive(0, "augment")
    assert augment(x, "", rng=rng) is x
    assert torch.equal(rng.get_state(), derive(0, "augment").get_state())


def test_same_seed_same_images_and_global_randomness_is_untouched():
    before = torch.get_rng_state()
    assert torch.equal(out(images(), ALL), out(images(), ALL))
    assert not torch.equal(out(images(), ALL), out(images(), ALL, seed=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_order_of_names_does_not_matter():
    assert torch.equal(out(images(), ALL), out(images(), "_".join(reversed(ALL.split("_")))))


def test_precision_does_not_change_the_draws():
    single = out(images(dtype=torch.float64).float(), ALL)
    torch.testing.assert_close(single.double(), out(images(), ALL), rtol=1e-4, atol=1e-4)


def test_flip_mirrors_about_half_of_the_images_and_leaves_the_rest():
    x = images(200, 1, 4)
    flipped = out(x, "flip")
    mirrored = (flipped == x.flip(3)).all((1, 2, 3))
    kept = (flipped == x).all((1, 2, 3))
    assert (mirrored ^ kept).all()
    assert 60 < int(mirrored.sum()) < 140


@pytest.mark.parametrize("siamese", [False, True])
def test_crop_moves_by_whole_pixels_and_fills_with_zero(siamese):
    x = torch.zeros(50, 1, 16, 16)
    x[:, 0, 8, 8] = 1.0
    moved = torch.cat([out(x, "crop", seed=s, siamese=siamese) for s in range(10)])
    assert torch.equal(moved.sum((1, 2, 3)), torch.ones(500))
    at = moved.flatten(1).argmax(1)
    down, across = at // 16 - 8, at % 16 - 8
    # An eighth of 16 pixels, each way; siamese has ten draws in all.
    assert (int(across.abs().max()), int(down.abs().max())) == (2, 2)
    assert torch.equal(out(torch.ones(9, 1, 16, 16), "crop").unique(), torch.tensor([0.0, 1.0]))


def test_crop_by_index_equals_crop_by_the_affine_map():
    # A draw of one half for scale makes the map a pure shift.
    from feddgm_flwr.core.augment import _geometry

    x = images(5, 2, 8)
    u = {"crop": torch.rand(2, 5, generator=derive(0, "u")), "flip": torch.rand(1, 5)}
    u["flip"] = torch.rand(1, 5, generator=derive(1, "u"))
    centre = {name: u[name] for name in ("crop",)}
    still = torch.full((2, 5), 0.5)
    torch.testing.assert_close(
        _geometry(x, {**centre, "scale": still}),
        _geometry(x, centre),
        rtol=1e-5,
        atol=1e-5,
    )
    mirror = {"flip": u["flip"]}
    torch.testing.assert_close(
        _geometry(x, {**mirror, "scale": still}),
        _geometry(x, mirror),
        rtol=1e-5,
        atol=1e-5,
    )


def test_cutout_blanks_at_most_a_quarter_and_changes_nothing_else():
    x = images(40, 1, 16) + 0.1
    cut = out(x, "cutout")
    gone = cut == 0
    assert torch.equal(cut[~gone], x[~gone])
    share = gone.double().mean((1, 2, 3))
    assert (share > 0).all()
    assert float(share.max()) == pytest.approx(0.25, abs=0.04)


def test_color_leaves_the_image_an_affine_function_of_itself_where_it_is_grey():
    x = images(1, 1, 8)
    y = out(x, "color")
    slope = (y[0, 0, 0, 1] - y[0, 0, 0, 0]) / (x[0, 0, 0, 1] - x[0, 0, 0, 0])
    assert 0.5 <= float(slope) <= 1.5
    torch.testing.assert_close(y - y.mean(), (x - x.mean()) * slope)
    assert abs(float((y - x).mean())) <= 0.125


def test_scale_and_rotate_keep_the_middle_of_the_image():
    x = torch.zeros(20, 1, 17, 17, dtype=torch.float64)
    x[:, 0, 6:11, 6:11] = 1.0
    y = out(x, "scale_rotate")
    assert (y[:, 0, 8, 8] > 0.99).all()
    assert (y[:, 0, 0, 0] == 0).all()
    assert not torch.allclose(y, x)


@pytest.mark.parametrize(
    ("names", "without"),
    [(ALL, "color_crop_cutout_scale_rotate"), ("flip", ""), ("color", "color"), ("", "")],
)
def test_only_the_mirror_is_left_out_where_it_would_change_a_class(names, without):
    assert fitting(names, flip=False) == without
    assert fitting(names, flip=True) == names
    assert ALL == ALL_NAMES


def test_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"augment must be .*cutout.* got 'color_blur'"):
        out(images(), "color_blur")


@pytest.mark.gpu
@pytest.mark.parametrize("names", EACH)
def test_a_gpu_draws_as_the_cpu_does(names):
    x = images(dtype=torch.float32)
    torch.testing.assert_close(out(x.cuda(), names).cpu(), out(x, names), rtol=1e-3, atol=1e-4)
