"""The reader of pictures: every mode has its right value or one sentence with the path."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from feddgm_flwr.data.pictures import MAX_PIXELS, PictureError, read_picture

RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)
SHADES = np.rint(RAMP / 257).astype(int)


def saved(tmp_path, picture, suffix="png", **how):
    path = tmp_path / f"picture.{suffix}"
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path, **how)
    return path


def grey(path, size):
    return read_picture(path, channels=1, size=size).pixels[..., 0].astype(int)


def colour(path, size=1):
    return read_picture(path, channels=3, size=size).pixels.astype(int)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(path, width, height, depth, colour_type, rows, *between):
    """Write a PNG that Pillow would not write; a row's bytes begin with its filter."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", head) + b"".join(between) + chunk(b"IDAT", zlib.compress(rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b""))
    return path


def refused(path, match):
    with pytest.raises(PictureError, match=match) as caught:
        read_picture(path, channels=3, size=8)
    said = str(caught.value)
    assert repr(str(path)) in said
    assert "\n" not in said
    assert ";" in said, "no remedy"


@pytest.mark.parametrize(
    ("dtype", "suffix"), [("<u2", "png"), ("<u2", "tif"), (">u2", "tif"), ("<u2", "jp2")]
)
def test_16_bits_keep_their_256_levels(tmp_path, dtype, suffix):
    path = saved(tmp_path, RAMP.astype(dtype), suffix)
    assert np.abs(grey(path, 256) - SHADES).max() <= 1
    assert np.array_equal(np.unique(grey(path, 256)), np.arange(256))


@pytest.mark.parametrize("maxval", [65535, 1023, 255, 15])
def test_a_pgm_is_scaled_by_its_own_maximum(tmp_path, maxval):
    path = tmp_path / "x.pgm"
    values = np.linspace(0, maxval, 16).round().astype(int)
    kind = ">u2" if maxval > 255 else "u1"
    body = np.tile(values, (16, 1)).astype(kind).tobytes()
    path.write_bytes(b"P5 16 16 %d\n" % maxval + body)
    assert np.abs(grey(path, 16)[0] - values * 255 / maxval).max() <= 1


def test_a_tiff_of_12_bits_is_scaled_by_4095(tmp_path):
    values = np.linspace(0, 4095, 16).round().astype(np.uint16)
    rows = np.tile(values, 16)
    pairs = rows.reshape(-1, 2).astype(int)
    packed = bytes(byte for a, b in pairs for byte in (a >> 4, (a & 15) << 4 | b >> 8, b & 255))
    entries = [(256, 16), (257, 16), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 16)]
    entries += [(279, len(packed))]
    ifd = struct.pack("<H", len(entries))
    ifd += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    path = tmp_path / "x.tif"
    head = b"II*\0" + struct.pack("<I", 8 + len(packed))
    path.write_bytes(head + packed + ifd + struct.pack("<I", 0))
    assert np.abs(grey(path, 16)[0] - values.astype(int) * 255 / 4095).max() <= 1


@pytest.mark.parametrize("dtype", ["u1", "<u2", "<f4"])
def test_a_tiff_whose_zero_is_white_is_turned_round(tmp_path, dtype):
    top = {"u1": 255, "<u2": 65535, "<f4": 1}[dtype]
    values = np.tile(np.linspace(0, top, 8), (8, 1)).astype(dtype)
    path = saved(tmp_path, values, "tif", tiffinfo={262: 0})
    with Image.open(path) as picture:
        assert picture.tag_v2[262] == 0
    raw = np.linspace(0, 255, 8)
    # Pillow writes 8 bits turned round already, all others as they are.
    expected = raw if dtype == "u1" else 255 - raw
    assert np.abs(grey(path, 8)[0] - expected).max() <= 1


def test_fractions_are_scaled_and_others_refused(tmp_path):
    ramp = np.tile(np.linspace(0, 1, 256, dtype=np.float32), (256, 1))
    assert np.abs(grey(saved(tmp_path, ramp, "tif"), 256)[0] - np.arange(256)).max() <= 1
    for bad, said in ((1.5, "to 1.5"), (-0.1, "from -0.1"), (np.nan, "nan"), (np.inf, "inf")):
        ramp[3, 3] = bad
        refused(saved(tmp_path, ramp, "tif"), f"fractions .* {said}")


@pytest.mark.filterwarnings("ignore:IM image format:DeprecationWarning")
@pytest.mark.parametrize(("suffix", "said"), [("tif", "signed numbers"), ("im", "mode I")])
def test_whole_numbers_without_a_scale_are_refused(tmp_path, suffix, said):
    refused(saved(tmp_path, np.full((8, 8), 70000, np.int32), suffix), said)


def test_signed_8_bits_are_refused(tmp_path):
    path = saved(tmp_path, np.full((8, 8), 7, np.uint8), "tif", tiffinfo={339: 2})
    refused(path, "signed numbers")


BLACK_ON_CLEAR = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
BLACK_ON_CLEAR.paste((0, 0, 0, 255), (2, 2, 6, 6))


def clear_ground(mode):
    if mode == "P":
        return BLACK_ON_CLEAR.quantize(4)
    if mode == "PA":
        # Pillow makes none of others: all pixels are black, and alpha tells them apart.
        black = Image.new("PA", (8, 8))
        black.putalpha(BLACK_ON_CLEAR.getchannel("A"))
        return black
    return BLACK_ON_CLEAR.convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *(("RGBA", suffix) for suffix in ("png", "tif", "webp", "gif", "jp2", "tga", "ico")),
        *(("LA", suffix) for suffix in ("png", "tif", "webp", "jp2", "tga")),
        *(("P", suffix) for suffix in ("png", "webp")),
        *(("PA", suffix) for suffix in ("tif", "webp")),
    ],
)
def test_a_black_shape_on_transparent_ground_stays_a_shape(tmp_path, mode, suffix):
    how = {"lossless": True} if suffix == "webp" else {"sizes": [(8, 8)]} if suffix == "ico" else {}
    shape = grey(saved(tmp_path, clear_ground(mode), suffix, **how), 8)
    assert (shape[0, 0], shape[4, 4]) == (255, 0)
    assert (shape == 0).sum() == 16


@pytest.mark.parametrize("mode", ["RGBa", "La"])
def test_premultiplied_pixels_are_composed_as_well(mode):
    from feddgm_flwr.data import pictures

    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128)).convert("LA" if mode == "La" else "RGBA")
    shown = pictures._on_white(pictures._eight(half.convert(mode), ""))
    assert abs(shown.getpixel((0, 0))[0] - 127) <= 1


def test_half_transparent_is_half_white(tmp_path):
    path = saved(tmp_path, Image.new("RGBA", (4, 4), (255, 0, 0, 128)))
    assert np.abs(colour(path)[0, 0] - [255, 127, 127]).max() <= 1


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_transparent_value_of_a_grey_png_is_white(tmp_path, depth):
    # Two rows of eight pixels: the top is the transparent value 0, below the brightest but one.
    low, other = 0, max(1, 2**depth - 2)
    bits = "".join(f"{low:0{depth}b}" for _ in range(8)), f"{other:0{depth}b}" * 8
    rows = b"".join(b"\0" + int(b, 2).to_bytes(depth) for b in bits)
    path = png(tmp_path / "x.png", 8, 2, depth, 0, rows, chunk(b"tRNS", struct.pack(">H", low)))
    pixels = grey(path, 2)
    assert pixels[0].tolist() == [255, 255]
    assert np.abs(pixels[1] - other * 255 / (2**depth - 1)).max() <= 1


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_brightest_value_of_few_bits_may_be_the_transparent_one(tmp_path, depth):
    top = 2**depth - 1
    bits = "0" * depth * 8, "1" * depth * 8
    rows = b"".join(b"\0" + int(b, 2).to_bytes(depth) for b in bits)
    path = png(tmp_path / "x.png", 8, 2, depth, 0, rows, chunk(b"tRNS", struct.pack(">H", top)))
    assert grey(path, 2).tolist() == [[0, 0], [255, 255]]


def test_the_transparent_colour_of_a_png_is_white_and_others_are_not(tmp_path):
    clear = chunk(b"tRNS", struct.pack(">HHH", 0, 0, 255))
    rows = b"\0" + bytes([0, 0, 255] * 2) + b"\0" + bytes([0, 0, 254] * 2)
    path = png(tmp_path / "x.png", 2, 2, 8, 2, rows, clear)
    assert colour(path, 2)[:, 0].tolist() == [[255, 255, 255], [0, 0, 254]]


def test_a_transparent_colour_of_16_bits_is_refused(tmp_path):
    clear = chunk(b"tRNS", struct.pack(">HHH", 0, 0, 1))
    refused(png(tmp_path / "x.png", 1, 1, 16, 2, b"\0" + bytes(6), clear), "16 bits")


def test_16_bit_colour_keeps_its_levels(tmp_path):
    rows = b"".join(b"\0" + np.repeat(RAMP[i], 3).astype(">u2").tobytes() for i in range(256))
    path = png(tmp_path / "x.png", 256, 256, 16, 2, rows)
    assert np.abs(colour(path, 256)[..., 1] - SHADES).max() <= 1


COLOURS = {
    "CMYK": ((0, 255, 255, 0), (255, 0, 0)),
    "YCbCr": ((76, 85, 255), (254, 0, 0)),
    "RGBX": ((255, 0, 0, 0), (255, 0, 0)),
    "RGB": ((255, 0, 0), (255, 0, 0)),
    "HSV": ((0, 255, 255), (255, 0, 0)),
    "LAB": ((255, 128, 128), (255, 255, 255)),
    "L": (77, (77, 77, 77)),
    "1": (1, (255, 255, 255)),
}


@pytest.mark.parametrize("mode", COLOURS)
def test_colours_are_what_they_are(tmp_path, mode):
    from feddgm_flwr.data import pictures

    value, expected = COLOURS[mode]
    picture = Image.new(mode, (8, 8), value)
    shown = pictures._eight(picture, "").convert("RGB").getpixel((0, 0))
    assert np.abs(np.array(shown) - expected).max() <= 2
    if mode in ("CMYK", "YCbCr", "RGB", "L", "1"):
        path = saved(tmp_path, picture, "tif")
        assert np.abs(colour(path)[0, 0] - expected).max() <= 2


def test_a_lab_tiff_of_neutral_grey_is_grey(tmp_path):
    pixel = colour(saved(tmp_path, Image.new("LAB", (8, 8), (128, 128, 128)), "tif"))[0, 0]
    assert np.ptp(pixel) <= 3
    assert 110 <= pixel[0] <= 128


def test_a_cmyk_jpeg_is_not_turned_round(tmp_path):
    path = saved(tmp_path, Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "jpg")
    assert colour(path)[0, 0].min() >= 253


def test_a_mode_that_nobody_knows_is_refused_by_name(tmp_path, monkeypatch):
    from feddgm_flwr.data import pictures

    class Odd:
        mode, info = "BGR;15", {}

    with pytest.raises(pictures._Refusal, match="BGR;15"):
        pictures._eight(Odd(), "")


# Where the top left and the top right quarter of the upright picture lie, as Pillow stores it.
UPRIGHT = np.array([[10, 90], [170, 250]], np.uint8).repeat(8, 0).repeat(8, 1)
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: np.rot90(a),
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", STORED)
def test_a_picture_is_shown_the_right_way_up(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](UPRIGHT)))
    path = saved(tmp_path, stored, suffix, exif=exif.tobytes())
    seen = grey(path, 16)
    assert np.abs(seen[4::8, 4::8] - [[10, 90], [170, 250]]).max() <= 6


def test_sizes_are_those_of_the_picture_as_shown(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, Image.new("RGB", (30, 10)), "jpg", exif=exif.tobytes())
    picture = read_picture(path, channels=3, size=8)
    assert (picture.width, picture.height, picture.mode) == (10, 30, "RGB")


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(tmp_path, value):
    exif = Image.Exif()
    exif[0x0112] = value
    assert grey(saved(tmp_path, UPRIGHT, "png", exif=exif.tobytes()), 16)[0, 0] == 10


def test_a_broken_exif_loses_no_picture(tmp_path):
    path = saved(tmp_path, UPRIGHT, "png", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert grey(path, 16)[0, 0] == 10


@pytest.mark.parametrize("suffix", ["gif", "png", "tif", "webp"])
def test_of_several_frames_the_first_counts(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), c) for c in ((255, 0, 0), (0, 0, 255))]
    how = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path, frames[0], suffix, save_all=True, append_images=frames[1:], **how)
    assert colour(path)[0, 0].tolist() == [255, 0, 0]


def test_400_megapixels_are_refused_before_they_are_decoded(tmp_path, recwarn):
    # The header alone: had it been decoded, it would be called damaged.
    for side in (20_000, 12_000):
        refused(png(tmp_path / "x.png", side, side, 8, 2, b""), "million pixels")
    assert side**2 > MAX_PIXELS
    assert not recwarn.list


def test_a_large_picture_within_the_bound_gives_no_warning(tmp_path):
    path = saved(tmp_path, Image.new("1", (9500, 9500), 1))
    assert grey(path, 8).tolist() == [[255] * 8] * 8


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "gif", "webp", "bmp", "jp2", "ppm"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_a_truncated_picture_is_refused(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = saved(tmp_path, noise, suffix)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    refused(path, "must be a picture")


@pytest.mark.parametrize("seed", range(20))
def test_flipped_bytes_give_a_picture_or_a_sentence(tmp_path, seed):
    rng = np.random.default_rng(seed)
    suffix = ("png", "jpg", "tif", "gif", "webp", "bmp")[seed % 6]
    path = saved(tmp_path, rng.integers(0, 256, (32, 32, 3), np.uint8), suffix)
    data = bytearray(path.read_bytes())
    for where in rng.integers(0, len(data), 30):
        data[where] ^= 255
    path.write_bytes(bytes(data))
    said = repr(str(path))
    try:
        shape = colour(path, 8).shape
    except PictureError as error:
        shape, said = (8, 8, 3), str(error)
    assert shape == (8, 8, 3)
    assert repr(str(path)) in said


def test_what_is_no_picture_is_refused(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    refused(text, "is none")
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", "is empty")
    refused(tmp_path, "is a folder")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    refused(tmp_path / "gone.png", "No such file")
    drawing = tmp_path / "x.eps"
    drawing.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    refused(drawing, "is a drawing")
    os.mkfifo(tmp_path / "pipe.png")
    refused(tmp_path / "pipe.png", "no ordinary file")


def test_a_picture_without_pixels_is_refused(tmp_path):
    refused(png(tmp_path / "x.png", 0, 5, 8, 0, b""), "x.png")
    (tmp_path / "x.ppm").write_bytes(b"P6 0 0 255\n")
    refused(tmp_path / "x.ppm", "x.ppm")


def test_a_file_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    path = saved(tmp_path, UPRIGHT)

    def forbid(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", forbid)
    refused(path, "permissions forbid")


def test_memory_that_runs_out_is_a_sentence(tmp_path, monkeypatch):
    path = saved(tmp_path, UPRIGHT)

    def full(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(Image, "open", full)
    refused(path, "MemoryError")


def test_an_extreme_shape_is_cut_about_its_centre(tmp_path):
    stripe = np.zeros((1, 3001), np.uint8)
    stripe[0, 1490:1511] = 200
    assert (grey(saved(tmp_path, stripe), 8) == 200).all()
