"""RGB of any image: transparent colours of every kind of PNG, ICC profiles, and the memory that large images take."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from conftest import CAT, ROOT, photograph
from PIL import Image, ImageCms, ImageOps

from nula.rgb_nula import to_rgb

GRAY, RGB, PALETTE = 0, 2, 3  # colour types of PNG


def png(depth: int, kind: int, samples: np.ndarray, clear: bytes, palette: bytes = b"") -> bytes:
    """A PNG file of `samples` (H, W, channels) of so many bits, with this tRNS chunk."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width, _ = samples.shape
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in samples]
    elif depth == 8:
        rows = [row.astype(np.uint8).tobytes() for row in samples]
    else:
        bits = np.unpackbits(samples.reshape(height, width, 1).astype(np.uint8), axis=2)[..., 8 - depth :]
        rows = [np.packbits(row).tobytes() for row in bits.reshape(height, -1)]
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), chunk(b"PLTE", palette) if palette else b"", chunk(b"tRNS", clear)]
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("decoded", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_gray_is_white(depth, decoded):
    """As the PNG specification (W3C, 3rd edition, 11.3.1.1) has it: samples equal to the value, at the file's depth."""
    top = 2**depth - 1
    samples = np.unique(np.linspace(0, top, 17).astype(int)).reshape(1, -1, 1)
    for clear in samples.ravel()[:: max(1, samples.size // 4)]:
        with Image.open(io.BytesIO(png(depth, GRAY, samples, struct.pack(">H", clear)))) as image:
            if decoded:
                image.load()
            shown = np.asarray(to_rgb(image))
        expected = np.where(samples == clear, 255, np.round(samples * (255 / top))).astype(np.uint8)
        assert np.array_equal(shown, expected.repeat(3, axis=2))


@pytest.mark.parametrize("decoded", [False, True])
@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_is_white(depth, decoded):
    step = 257 if depth == 16 else 1
    samples = np.array([[[10, 20, 30], [10, 20, 31], [200, 100, 0]]]) * step
    with Image.open(io.BytesIO(png(depth, RGB, samples, struct.pack(">HHH", *samples[0, 0])))) as image:
        if decoded:
            image.load()
        assert np.asarray(to_rgb(image)).tolist() == [[[255, 255, 255], [10, 20, 31], [200, 100, 0]]]


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_transparent_entries_of_a_palette_are_put_over_white(depth):
    palette = bytes([200, 0, 0, 0, 100, 0])
    file = png(depth, PALETTE, np.array([[[0], [1]]]), bytes([0, 102]), palette)
    with Image.open(io.BytesIO(file)) as image:
        assert np.asarray(to_rgb(image)).tolist() == [[[255, 255, 255], [153, 193, 153]]]  # 102 is 0.4


def test_a_transparent_index_of_a_gif_is_white():
    file = io.BytesIO()
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 90, 80, 70])
    image.putpixel((1, 0), 1)
    image.save(file, "GIF", transparency=0)
    with Image.open(file) as opened:
        assert np.asarray(to_rgb(opened)).tolist() == [[[255, 255, 255], [90, 80, 70]]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "I;16"])
@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8])
def test_bands_give_what_the_whole_image_gives(mode, orientation, monkeypatch):
    """To the bit what conversion of the whole and ImageOps.exif_transpose give, which keep five copies in memory."""
    monkeypatch.setattr("nula.rgb_nula.BAND", 200)
    pixels = np.random.default_rng(0).integers(0, 256, (31, 23, 4), dtype=np.uint8)
    image = Image.fromarray(pixels, "RGBA")
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    elif mode in ("PA", "La", "RGBa"):
        image = image.convert({"PA": "P", "La": "LA", "RGBa": "RGBA"}[mode]).convert(mode)
    else:
        image = image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.info["exif"] = exif.tobytes()
    turned = ImageOps.exif_transpose(image)
    if mode == "I;16":
        expected = Image.fromarray(np.round(np.asarray(turned) / 257).astype(np.uint8)).convert("RGB")
    elif mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        turned = turned.convert("LA" if mode == "La" else "RGBA").convert("RGBA")
        expected = Image.alpha_composite(Image.new("RGBA", turned.size, "white"), turned).convert("RGB")
    else:
        expected = turned.convert("RGB")
    before = image.tobytes()
    assert np.array_equal(np.asarray(to_rgb(image)), np.asarray(expected))
    assert image.tobytes() == before


# ICC profiles

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SWAPPED = SRGB.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ").replace(b"?XYZ", b"bXYZ")  # its red is sRGB's blue


def linear_gray() -> bytes:
    """A profile of gray that is proportional to light."""
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 7) + b"linear\0" + bytes(79),
        b"wtpt": b"XYZ " + bytes(4) + struct.pack(">iii", 63190, 65536, 54061),
        b"kTRC": b"curv" + bytes(4) + struct.pack(">IH", 1, 256) + bytes(2),
    }
    table, content = struct.pack(">I", len(tags)), b""
    for name, tag in tags.items():
        table += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(content), len(tag))
        content += tag + bytes(-len(tag) % 4)
    body = table + content
    header = struct.pack(">I", 128 + len(body)) + b"lcms" + b"\x02\x40\0\0" + b"mntrGRAYXYZ " + bytes(12) + b"acsp"
    header += bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + body


def with_profile(image: Image.Image, profile: bytes) -> Image.Image:
    image.info["icc_profile"] = profile
    return image


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA"])
def test_colours_of_a_profile_become_those_of_srgb(mode):
    pixels = photograph()
    image = with_profile(Image.fromarray(pixels).convert(mode), SWAPPED)
    expected = np.asarray(Image.fromarray(pixels).convert(mode).convert("RGB"))[..., ::-1].astype(int)
    assert np.abs(np.asarray(to_rgb(image)) - expected).max() <= 3


def test_alpha_is_put_over_white_behind_the_profile():
    image = with_profile(Image.new("RGBA", (1, 1), (200, 100, 0, 102)), SWAPPED)
    expected = [round(0.4 * value + 0.6 * 255) for value in (0, 100, 200)]
    assert np.asarray(to_rgb(image))[0, 0].tolist() == pytest.approx(expected, abs=2)


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_gray_of_a_profile_becomes_that_of_srgb(mode):
    values = np.arange(256, dtype=np.uint8)[None]
    image = with_profile(Image.fromarray(values).convert(mode), linear_gray())
    light = values / 255
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)  # IEC 61966-2-1
    assert np.abs(np.asarray(to_rgb(image))[..., 0] - 255 * encoded).max() <= 2


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK"])
def test_profiles_of_srgb_and_broken_ones_change_no_bit(mode):
    image = Image.fromarray(photograph()).convert(mode)
    expected = np.asarray(to_rgb(image.copy()))
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (SRGB, b"", b"no profile", SWAPPED[:300], lab, linear_gray() if mode == "RGB" else b""):
        assert np.array_equal(np.asarray(to_rgb(with_profile(image.copy(), profile))), expected)
    with Image.open(CAT) as cat:  # whose profile is sRGB's in another version
        assert cat.info["icc_profile"] != SRGB
        assert np.array_equal(np.asarray(to_rgb(cat)), np.asarray(cat))


def test_a_pillow_without_profiles_leaves_colours_as_they_are(monkeypatch):
    def missing(*_):
        raise ImportError("The _imagingcms C module is not installed")

    monkeypatch.setattr(ImageCms, "getOpenProfile", missing)
    image = with_profile(Image.fromarray(photograph()), SWAPPED + b"\0")
    assert np.array_equal(np.asarray(to_rgb(image)), photograph())


# Memory

PEAK = """
import numpy as np, sys
from PIL import Image
from nula.rgb_nula import to_rgb

def peak():
    [line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM:")]
    return 1024 * int(line.split()[1])

image = Image.new(sys.argv[1], (4000, 4000))
before = peak()
to_rgb(image)
print((peak() - before) / (4 * 4000 * 4000))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "I;16", "CMYK"])
def test_no_more_than_one_copy_is_made(mode):
    """Beside the image itself and the bands; five were made before. PIL keeps four bytes a pixel of RGB."""
    done = subprocess.run([sys.executable, "-c", PEAK, mode], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < (0.1 if mode == "RGB" else 2.0 if mode == "I;16" else 1.4)
