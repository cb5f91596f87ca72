"""Augmentation: its gradients, its invariances, and what each operation does."""

import pytest
import torch

from feddgm_flwr.core.augment import ALL_NAMES, DRAWS, ONE, PAPER, Pixels, augment, fitting
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


# The authors' scheme: one operation a call, on normalised images

PIXELS = Pixels.of((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
ONES = [ONE + name for name in DRAWS]


def normalised(x):
    return (x - PIXELS.mean.to(x)) / PIXELS.std.to(x)


def one(x, names, *, seed=0, siamese=False):
    return augment(x, ONE + names, rng=derive(seed, "augment"), siamese=siamese, pixels=PIXELS)


@pytest.mark.parametrize("siamese", [False, True])
@pytest.mark.parametrize("names", ONES)
def test_derivatives_of_the_authors_scheme_are_right(names, siamese):
    x = images(2, 3, 6).requires_grad_()
    squared = lambda x: one(x, names.removeprefix(ONE), siamese=siamese) ** 2  # noqa: E731
    assert torch.autograd.gradcheck(squared, (x,))
    assert torch.autograd.gradgradcheck(squared, (x,))


def test_one_operation_a_call_each_as_often():
    x = images(4, 3, 12)
    alone = dict.fromkeys(DRAWS, 0)
    for seed in range(600):
        rng = derive(seed, "augment")
        drawn = [*DRAWS][int(torch.randint(6, (), generator=rng))]
        # A draw among one name costs as much randomness as a draw among six.
        assert torch.equal(one(x, ALL, seed=seed), one(x, drawn, seed=seed))
        alone[drawn] += 1
    assert all(60 < count < 140 for count in alone.values())


def test_what_comes_in_is_the_mean():
    white = torch.ones(60, 3, 16, 16, dtype=torch.float64)
    for name in ("crop", "cutout", "scale", "rotate"):
        seen = one(white, name)
        mean = PIXELS.mean.to(white).expand_as(white)
        gone = ((seen - mean).abs() < 1e-6).all(1)
        assert gone.any(), name
        assert (seen >= mean - 1e-6).all(), name
        assert not ((seen - 1).abs() < 1e-6).all(), name


@pytest.mark.parametrize("side", [8, 13, 16, 31])
def test_cutout_is_half_a_side_of_whole_pixels_at_a_uniform_place(side):
    gone = normalised(one(torch.ones(4000, 3, side, side), "cutout"))[:, 0].abs() < 1e-5
    size = int(side * 0.5 + 0.5)
    rows = gone.any(2)
    assert int(rows.sum(1).max()) == size
    # Its centre lies at one of side (odd) or side + 1 (even) places, uniformly.
    places = side + 1 - size % 2
    expected = torch.zeros(side)
    for centre in range(places):
        first = centre - size // 2
        expected[max(first, 0) : first + size] += 1 / places
    torch.testing.assert_close(rows.float().mean(0), expected, atol=0.035, rtol=0)


def test_the_factors_of_scale_are_uniform_between_the_inverse_and_the_largest():
    side, n = 64, 3000
    ramp = torch.linspace(-1 + 1 / side, 1 - 1 / side, side, dtype=torch.float64)
    x = torch.zeros(n, 3, side, side, dtype=torch.float64)
    x += (0.5 + 0.1 * ramp)[None, None, None, :]
    y = normalised(one(x, "scale"))[:, 0, side // 2] * 0.2 + 0.4
    slope = (y[:, 40] - y[:, 24]) / (x[0, 0, 0, 40] - x[0, 0, 0, 24])
    assert float(slope.min()) == pytest.approx(1 / 1.2, abs=0.01)
    assert float(slope.max()) == pytest.approx(1.2, abs=0.01)
    # Uniform, not log-uniform, whose mean is 1.0055.
    assert float(slope.mean()) == pytest.approx((1.2 + 1 / 1.2) / 2, abs=0.006)


def test_colour_is_stated_for_normalised_images():
    x = images(400, 3, 4)
    coloured, seen = normalised(one(x, "color")), normalised(x)
    shift = (coloured - seen).mean((1, 2, 3))
    assert float(shift.min()) == pytest.approx(-0.5, abs=0.03)
    assert float(shift.max()) == pytest.approx(0.5, abs=0.03)
    grey = coloured - coloured.mean(1, keepdim=True)
    times = (grey / (seen - seen.mean(1, keepdim=True)))[:, 0, 0, 0]
    assert 0 <= float(times.min()) < 0.1
    assert 2 < float(times.max()) < 3


@pytest.mark.parametrize("name", DRAWS)
def test_each_image_has_its_own_draw_unless_siamese(name):
    same = images(1, side=16).expand(32, -1, -1, -1)
    assert any(not torch.equal(one(same, name)[0], d) for d in one(same, name)[1:])
    torch.testing.assert_close(one(same, name, siamese=True)[:1].expand_as(same),
                               one(same, name, siamese=True))  # fmt: skip


def test_the_order_of_names_and_a_missing_mirror_under_the_authors_scheme():
    x = images(3, 3, 12)
    for seed in range(20):
        again = one(x, "_".join(reversed(ALL.split("_"))), seed=seed)
        assert torch.equal(one(x, ALL, seed=seed), again)
    assert fitting(PAPER, flip=False) == "one:color_crop_cutout_scale_rotate"
    assert fitting(PAPER, flip=True) == PAPER
    assert fitting("one:flip", flip=False) == ""
    assert fitting("flip_crop", flip=False) == "crop"
    assert fitting("", flip=False) == ""


@pytest.mark.parametrize("names", ["one:", "one", "one:color_", "two:color", "color_one:flip"])
def test_an_unknown_scheme_is_refused(names):
    with pytest.raises(ValueError, match=r"augment must be"):
        out(images(), names)
