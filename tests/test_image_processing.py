import io
import itertools
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, photograph
from PIL import Image

from nula.image_processing_nula import IMAGE_MEAN, IMAGE_STD, NulaImageProcessor, normalize, to_rgb

processor = NulaImageProcessor()


def pixel_values(image, **kwargs) -> torch.Tensor:
    return processor(image, return_tensors="pt", **kwargs).pixel_values


def test_pixels_are_scaled_to_minus_one_to_one():
    values = np.zeros((32, 32, 3), dtype=np.uint8)
    values[0, 0] = (255, 51, 204)
    result = pixel_values(values)
    assert result.shape == (1, 3, 32, 32)
    torch.testing.assert_close(result[0, :, 0, 0], torch.tensor([1.0, -0.6, 0.6]))
    assert result[0, :, 1:, 1:].unique().tolist() == [-1.0]


def test_all_forms_of_one_image_agree():
    array = photograph(32, 32)
    expected = pixel_values(Image.fromarray(array))
    torch.testing.assert_close(expected[0], torch.from_numpy(array / 127.5 - 1).permute(2, 0, 1).float())
    chw = array.transpose(2, 0, 1).copy()
    for form in (array, chw, torch.from_numpy(array), torch.from_numpy(chw), array.astype(np.int64), array[::-1][::-1]):
        assert torch.equal(pixel_values(form), expected)
    for form in (chw / 255, torch.from_numpy(array).float() / 255, torch.from_numpy(array).double() / 255):
        torch.testing.assert_close(pixel_values(form), expected)
    batch = np.stack([array, array[:, ::-1]])
    mirrored = expected.flip(3)
    for form in (batch, torch.from_numpy(batch).permute(0, 3, 1, 2), list(batch), [array, Image.fromarray(batch[1])]):
        assert torch.equal(pixel_values(form), torch.cat([expected, mirrored]))


def test_large_arrays_are_resized_as_pil_images_are():
    array = photograph(100, 75)
    expected = pixel_values(Image.fromarray(array))
    pil = np.asarray(Image.fromarray(array).resize((32, 32), Image.Resampling.BICUBIC))
    torch.testing.assert_close(expected[0], torch.from_numpy(pil / 127.5 - 1).permute(2, 0, 1).float())
    assert torch.equal(pixel_values(array), expected)
    assert torch.equal(pixel_values(array[None].transpose(0, 3, 1, 2)), expected)
    torch.testing.assert_close(pixel_values(torch.from_numpy(array) / 255), expected, atol=0.02, rtol=0)


def test_resizing_is_antialiased():
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    values = pixel_values(stripes)
    assert values.std() < 0.1  # without antialiasing, picking every second column gives all white or all black


def test_ambiguous_channels_come_first_unless_told():
    array = np.zeros((3, 32, 3), dtype=np.uint8)
    array[0] = 255
    small = NulaImageProcessor(do_resize=False)
    first = small(array, return_tensors="pt").pixel_values
    last = small(array, return_tensors="pt", input_data_format="channels_last").pixel_values
    assert first.shape == (1, 3, 32, 3)
    assert first[0, 0].min() == 1
    assert last.shape == (1, 3, 3, 32)
    assert last[0, :, 0].min() == 1


def test_tensor_types():
    image = Image.fromarray(photograph())
    assert isinstance(processor(image, return_tensors="np").pixel_values, np.ndarray)
    plain = processor([image, image]).pixel_values
    assert [value.shape for value in plain] == [(3, 32, 32)] * 2


def test_saved_and_loaded_settings_are_kept(tmp_path):
    NulaImageProcessor(size={"height": 48, "width": 40}, resample=2, image_std=(1, 1, 0.25)).save_pretrained(tmp_path)
    loaded = NulaImageProcessor.from_pretrained(tmp_path)
    assert loaded(photograph(), return_tensors="pt").pixel_values.shape == (1, 3, 48, 40)
    assert (loaded.resample, loaded.image_std) == (2, [1, 1, 0.25])


@pytest.mark.parametrize(("height", "width"), [(48, 48), (40, 64)])
def test_other_sizes(height, width):
    other = NulaImageProcessor(size={"height": height, "width": width})
    array = photograph(100, 75)
    expected = np.asarray(Image.fromarray(array).resize((width, height), Image.Resampling.BICUBIC))
    expected = torch.from_numpy(expected / 127.5 - 1).permute(2, 0, 1).float()
    for form in (array, Image.fromarray(array), torch.from_numpy(array).permute(2, 0, 1)):
        torch.testing.assert_close(other(form, return_tensors="pt").pixel_values[0], expected)
    mixed = other([array, photograph(height, width), array / 255], return_tensors="np").pixel_values
    assert mixed.shape == (3, 3, height, width)
    torch.testing.assert_close(
        torch.from_numpy(mixed[1]), torch.from_numpy(photograph(height, width).T / 127.5 - 1).float().mT
    )
    torch.testing.assert_close(torch.from_numpy(mixed[2]), expected, atol=0.02, rtol=0)


def test_numpy_computes_the_same_to_the_bit_as_torch():
    """As every answer before was computed, and as it is on other devices."""
    every_value = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    for mean, std in ((IMAGE_MEAN, IMAGE_STD), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))):
        settings = NulaImageProcessor(do_resize=False, image_mean=mean, image_std=std)
        expected = normalize(torch.from_numpy(every_value).permute(0, 3, 1, 2).float() * (1 / 255), mean, std)
        assert np.array_equal(settings(every_value, return_tensors="np").pixel_values, expected.numpy())


PARENT = """
import sys
import datasets, numpy as np, torch
from PIL import Image
from torch.utils.data import DataLoader
from nula.configuration_nula import NulaConfig
from nula.image_processing_nula import NulaImageProcessor
from nula.modeling_nula import NulaForImageClassification

torch.set_num_threads(4)
rng = np.random.default_rng(0)
images = [Image.fromarray(rng.integers(0, 256, (32 + 8 * (i % 2), 40, 3), dtype=np.uint8)) for i in range(64)]
processor = NulaImageProcessor()
model = NulaForImageClassification(NulaConfig())
with torch.no_grad():
    model(torch.randn(64, 3, 32, 32))  # from here on there are threads that a fork does not copy
forms = {
    "images": lambda batch: batch,
    "arrays": lambda batch: [np.asarray(image) for image in batch],
    "batch": lambda batch: np.stack([np.asarray(image.resize((64, 64))) for image in batch] * 40),
    "fractions": lambda batch: np.stack([np.asarray(image.resize((64, 64))) / 255 for image in batch] * 40),
}
"""
MAP = """
def process(batch, form, kind):
    pixels = processor(forms[form](batch["image"]), return_tensors=kind)["pixel_values"]
    return {"pixel_values": pixels[: len(batch["image"])]}


table = datasets.Dataset.from_dict({"image": images})
for form in forms:
    for kind in (None, "np", "pt"):
        options = {"form": form, "kind": kind}
        mapped = table.map(process, batched=True, batch_size=32, num_proc=2, fn_kwargs=options).with_format("numpy")
        expected = [process({"image": half}, **options)["pixel_values"] for half in (images[:32], images[32:])]
        assert np.array_equal(mapped["pixel_values"][:], np.concatenate([np.asarray(half) for half in expected]))
        print(form, kind)
"""
LOAD = """
class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return len(images)

    def __getitem__(self, index):
        return processor(images[index], return_tensors="pt")["pixel_values"][0]


loaded = torch.cat(list(DataLoader(Rows(), batch_size=8, num_workers=2)))
assert torch.equal(loaded, processor(images, return_tensors="pt")["pixel_values"])
print("same")
"""


def run_parent(code: str) -> str:
    """Standard output of a process that may not take longer than a minute; what hangs raises TimeoutExpired."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", PARENT + code]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its workers too
            raise
    assert process.returncode == 0, errors
    return output


def test_forked_workers_of_a_parent_with_threads():
    done = [tuple(line.split()) for line in run_parent(MAP).splitlines()]
    assert done == list(itertools.product(("images", "arrays", "batch", "fractions"), ("None", "np", "pt")))


def test_workers_of_a_data_loader():
    assert run_parent(LOAD) == "same\n"


def one_pixel(mode: str, value, **save) -> tuple[int, ...]:
    """RGB of a picture of one colour, written to a file and read again if `save` says how."""
    image = Image.new(mode, (4, 4), value)
    if save:
        file = io.BytesIO()
        image.save(file, **save)
        image = Image.open(file)
    return to_rgb(image).getpixel((1, 1))


@pytest.mark.parametrize(
    ("mode", "value", "save", "expected"),
    [
        ("RGB", (10, 20, 30), {"format": "PNG"}, (10, 20, 30)),
        ("L", 77, {"format": "PNG"}, (77, 77, 77)),
        ("1", 1, {"format": "PNG"}, (255, 255, 255)),
        ("RGBA", (255, 0, 0, 255), {"format": "PNG"}, (255, 0, 0)),
        ("RGBA", (255, 0, 0, 0), {"format": "PNG"}, (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), {"format": "PNG"}, (204, 204, 204)),
        ("LA", (0, 51), {"format": "PNG"}, (204, 204, 204)),
        ("CMYK", (0, 255, 255, 0), {"format": "TIFF"}, (255, 0, 0)),
        ("I;16", 257 * 100, {"format": "PNG"}, (100, 100, 100)),
        ("I;16", 65535, {"format": "TIFF"}, (255, 255, 255)),
        ("I", 257 * 3, {}, (3, 3, 3)),
        ("F", 0.2, {}, (51, 51, 51)),
        ("I;16", 257 * 9, {"format": "PNG", "transparency": 257 * 9}, (255, 255, 255)),
        ("I;16", 257 * 9, {"format": "PNG", "transparency": 5}, (9, 9, 9)),
        ("La", (0, 51), {}, (204, 204, 204)),
        ("YCbCr", (255, 128, 128), {}, (255, 255, 255)),
        ("RGB", (9, 9, 9), {"format": "PNG", "transparency": (9, 9, 9)}, (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb(mode, value, save, expected):
    assert one_pixel(mode, value, **save) == expected


def test_palette_with_and_without_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 20, 0, 0, 255])
    image.putpixel((1, 0), 1)
    assert [to_rgb(image).getpixel((x, 0)) for x in (0, 1)] == [(200, 10, 20), (0, 0, 255)]
    image.info["transparency"] = 1
    assert [to_rgb(image).getpixel((x, 0)) for x in (0, 1)] == [(200, 10, 20), (255, 255, 255)]


def test_exif_orientation_is_honoured():
    image = Image.fromarray(photograph(32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    file = io.BytesIO()
    image.save(file, format="PNG", exif=exif)
    turned = pixel_values(Image.open(file))
    assert torch.equal(turned, pixel_values(image.transpose(Image.Transpose.ROTATE_270)))


def test_unreadable_exif_is_passed_over():
    image = Image.fromarray(photograph(32, 32))
    expected = pixel_values(image)
    image.info["exif"] = b"Exif\x00\x00garbage"
    assert torch.equal(pixel_values(image), expected)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        ([], ValueError, "empty list"),
        (np.zeros((2, 32, 32)), ValueError, r"1, 3 or 4 channels .*, first or last, got shape \(2, 32, 32\)"),
        (torch.zeros(2, 2, 32, 32), ValueError, r"1, 3 or 4 channels .*, first or last, got shape \(2, 32, 32\)"),
        (np.zeros(32), ValueError, r"must have 3 axes, or 2 if it is gray, got shape \(32,\)"),
        (np.zeros((0, 32, 3)), ValueError, "at least one pixel"),
        (torch.zeros(0, 3, 32, 32), ValueError, "at least one image"),
        (torch.full((3, 32, 32), float("nan")), ValueError, r"must lie in \[0, 1\], got NaN"),
        (np.full((3, 32, 32), 1.5), ValueError, r"must lie in \[0, 1\], got 1.5 to 1.5"),
        (np.full((3, 32, 32), -0.1), ValueError, r"must lie in \[0, 1\]"),
        (np.full((3, 32, 32), 300), ValueError, r"must lie in \[0, 255\], got 300 to 300"),
        (np.full((3, 32, 32), -1), ValueError, r"must lie in \[0, 255\], got -1 to -1"),
        (np.zeros((3, 32, 32), dtype=bool), ValueError, "must hold integers"),
        (np.full((3, 32, 32), 1 + 1e-6), ValueError, r"got 1.00000095 to 1.00000095"),
        (Image.new("RGB", (0, 5)), ValueError, r"at least one pixel, got size \(0, 5\)"),
        (Image.new("F", (4, 4), 7.0), ValueError, r"must lie in \[0, 1\], got 7 to 7"),
        (Image.new("I", (4, 4), 70000), ValueError, r"must lie in \[0, 65535\]"),
        ("cat.png", TypeError, "a PIL image, numpy array or torch tensor is needed, got str"),
        ([photograph(), None], TypeError, "image 1: .* got NoneType"),
        (np.array(["cat.png"]).reshape(1, 1, 1), ValueError, "must hold integers .* got <U7"),
        (np.zeros((3, 4, 4), dtype="datetime64[s]"), ValueError, "must hold integers .* got datetime64"),
        (np.zeros((3, 4, 4), dtype=[("r", "u1")]), ValueError, "must hold integers"),
        (np.ma.masked_array(np.zeros((3, 4, 4))), ValueError, "a masked array leaves values open"),
        (torch.quantize_per_tensor(torch.zeros(3, 4, 4), 0.1, 0, torch.quint8), ValueError, "got torch.quint8"),
        (torch.full((3, 4, 4), 256).to(torch.uint16), ValueError, r"must lie in \[0, 255\], got 256 to 256"),
    ],
)
def test_bad_input_is_named(image, error, message):
    with pytest.raises(error, match=message):
        pixel_values(image)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": {"height": 0, "width": 32}}, "positive integers"),
        ({"size": {"shortest_edge": 32}}, "height"),
        ({"resample": 0}, "resample must be 2"),
        ({"image_std": (0.5, 0.5, 0)}, "image_std must be positive"),
        ({"image_mean": (0.5,)}, "image_mean must be a number, or one for each of R, G, B"),
        ({"image_mean": "0.5"}, "image_mean must be a number, or one for each"),
        ({"image_std": (0.5, 0.5, float("nan"))}, "image_std must be a number, or one for each"),
        ({"size": 0}, "size must be a number of pixels"),
        ({"size": True}, "size must be a number of pixels"),
        ({"size": (32,)}, "size must be a number of pixels"),
        ({"size": (32, 32.0)}, "size must be a number of pixels"),
        ({"size": "32"}, "size must be a number of pixels"),
        ({"do_resize": "yes"}, "do_resize must be True or False, got 'yes'"),
        ({"rescale_factor": None}, "rescale_factor must be a number"),
    ],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        NulaImageProcessor(**settings)
    if None not in settings.values():
        with pytest.raises(ValueError, match=message):
            processor(photograph(), **settings)


def test_settings_of_a_call():
    """As transformers' processors have them: each is what a processor that is made with it does."""
    array = photograph(48, 40)
    for settings in (
        {"do_resize": False},
        {"size": 24},
        {"size": (24, 16)},
        {"size": {"height": 24, "width": 16}, "resample": Image.Resampling.BILINEAR},
        {"do_rescale": False, "do_normalize": False},
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5, "image_mean": 1, "image_std": [1, 1, 1]},
    ):
        expected = NulaImageProcessor(**settings)(array, return_tensors="pt").pixel_values
        assert torch.equal(pixel_values(array, **settings), expected)
        assert torch.equal(pixel_values(Image.fromarray(array), **settings), expected)
    assert pixel_values(array, do_resize=False).shape == (1, 3, 48, 40)
    assert pixel_values(array, size=(24, 16)).shape == (1, 3, 24, 16)
    assert pixel_values(array, do_rescale=False, do_normalize=False).max() > 1
    assert torch.equal(pixel_values(array, do_convert_rgb=True, size=None, resample=None), pixel_values(array))
    last = pixel_values(array, data_format="channels_last")
    assert torch.equal(last.permute(0, 3, 1, 2), pixel_values(array))
    assert processor.size == {"height": 32, "width": 32}  # as before


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"do_center_crop": True},
            TypeError,
            "'do_center_crop' is no setting of this processor; it has do_resize, ",
        ),
        ({"do_convert_rgb": False}, ValueError, "do_convert_rgb must be True"),
        ({"data_format": "none"}, ValueError, 'data_format must be "channels_first" or "channels_last", got \'none\''),
        ({"return_tensors": "tf"}, ValueError, 'return_tensors must be "pt", "np" or None, got \'tf\''),
    ],
)
def test_what_a_call_cannot_do_is_named(settings, error, message):
    with pytest.raises(error, match=message):
        processor(photograph(), **{"return_tensors": "pt"} | settings)


def test_a_size_may_be_a_number(tmp_path):
    NulaImageProcessor().save_pretrained(tmp_path)
    loaded = NulaImageProcessor.from_pretrained(tmp_path, size=48)
    assert loaded.size == {"height": 48, "width": 48}
    loaded.size = 24
    assert loaded(photograph(), return_tensors="pt").pixel_values.shape == (1, 3, 24, 24)


@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy])
def test_gray_arrays_are_gray_images(form):
    gray = photograph(32, 32)[..., 0].copy()
    expected = pixel_values(Image.fromarray(gray))
    for shape in ((32, 32), (32, 32, 1), (1, 32, 32), (1, 32, 32, 1), (1, 1, 32, 32)):
        assert torch.equal(pixel_values(form(gray.reshape(shape))), expected)
        torch.testing.assert_close(pixel_values(form(gray.reshape(shape) / 255)), expected)
    large = photograph(60, 50)[..., 0].copy()
    torch.testing.assert_close(pixel_values(form(large)), pixel_values(Image.fromarray(large)), atol=0.009, rtol=0)
    batch = form(np.stack([gray, 255 - gray])[:, None])
    assert torch.equal(pixel_values(batch), torch.cat([expected, pixel_values(Image.fromarray(255 - gray))]))
    three = form(np.stack([gray] * 3))  # three gray images look like one in colour, and are taken for that
    assert pixel_values(three).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy])
def test_arrays_with_alpha_are_put_over_white_as_images_are(form):
    """To the bit, for every value of colour and alpha."""
    colour, alpha = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    array = np.stack([colour, 255 - colour, colour // 2, alpha], axis=2)
    plain = {"do_resize": False, "do_rescale": False, "do_normalize": False}
    expected = pixel_values(Image.fromarray(array, "RGBA"), **plain)
    for given in (array, array.transpose(2, 0, 1).copy(), array[None], array.astype(np.int64)):
        assert torch.equal(pixel_values(form(given), **plain), expected)
    floating = pixel_values(form(array / 255), **plain) * 255
    torch.testing.assert_close(floating, expected, atol=0.51, rtol=0)


def test_wide_integers_and_nested_tensors():
    array = photograph(32, 32)
    expected = pixel_values(array)
    for dtype in (torch.uint16, torch.uint32, torch.uint64, torch.int16):
        assert torch.equal(pixel_values(torch.from_numpy(array.astype(np.int64)).to(dtype)), expected)
    nested = torch.nested.nested_tensor([torch.from_numpy(array), torch.from_numpy(photograph(40, 30))])
    assert torch.equal(pixel_values(nested), pixel_values([array, torch.from_numpy(photograph(40, 30))]))
