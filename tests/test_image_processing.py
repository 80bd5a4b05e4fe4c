"""IT3ImageProcessor: images of every mode and layout, as many channels as the model takes."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from hf_it3 import IT3ImageProcessor


MODES = [
    "1",
    "L",
    "P",
    "RGB",
    "RGBA",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "LA",
    "La",
    "PA",
    "RGBa",
    "RGBX",
    "I;16",
]


def grey(**values) -> IT3ImageProcessor:
    return IT3ImageProcessor(**{"num_channels": 1, "do_normalize": False, **values})


def image_of_mode(mode: str, value: int = 255) -> Image.Image:
    """A white image with a black left half."""
    array = np.zeros((20, 20), np.uint8)
    array[:, 10:] = value
    image = Image.fromarray(array)
    if mode in ("I;16", "I"):
        deep = array.astype(np.uint16) * 257
        return Image.fromarray(deep) if mode == "I;16" else Image.fromarray(deep.astype(np.int32))
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.applyTransform(image.convert("RGB"), ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    for step in {"La": ("LA", "La"), "PA": ("P", "PA"), "RGBa": ("RGBA", "RGBa"), "HSV": ("RGB", "HSV")}.get(
        mode, (mode,)
    ):
        image = image.convert(step)
    assert image.mode == mode
    return image


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_images_of_every_mode_show_the_same_picture(mode, channels):
    processor = grey(num_channels=channels, size={"height": 20, "width": 20})
    pixels = processor(images=image_of_mode(mode), return_tensors="pt").pixel_values
    assert pixels.shape == (1, channels, 20, 20)
    assert pixels[..., :10].max() < 0.03
    assert pixels[..., 10:].min() > 0.97


@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_is_white(channels):
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    palette = Image.new("P", (20, 20))
    palette.info["transparency"] = 0
    for image in (clear, palette):
        assert grey(num_channels=channels)(images=image, return_tensors="pt").pixel_values.min() == 1


@pytest.mark.parametrize("shape", [(20, 20, 1), (20, 20, 3), (20, 20, 4), (1, 20, 20), (3, 20, 20), (4, 20, 20)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_arrays_and_tensors_of_every_layout_are_images(shape, channels, kind):
    array = np.full(shape, 51, np.uint8)
    pixels = grey(num_channels=channels)(images=[kind(array)], return_tensors="pt").pixel_values
    torch.testing.assert_close(pixels, torch.full((1, channels, 28, 28), 0.2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(20,), (20, 20), (20, 20, 2), (2, 20, 20), (7, 7, 7)])
def test_arrays_of_other_shapes_are_refused(shape):
    with pytest.raises(ValueError):
        grey()(images=[np.zeros(shape, np.uint8)], return_tensors="pt")


def test_colours_become_grey_as_pil_does_it():
    array = np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8)
    ours = grey(do_rescale=False)(images=[array], return_tensors="pt").pixel_values[0, 0]
    theirs = torch.tensor(np.asarray(Image.fromarray(array).convert("L"))).float()
    assert (ours - theirs).abs().max() <= 1


def test_values_are_normalised_with_the_given_statistics():
    processor = IT3ImageProcessor(num_channels=1, image_mean=[0.25], image_std=[0.5])
    pixels = processor(images=Image.new("L", (9, 9), 255), return_tensors="pt").pixel_values
    torch.testing.assert_close(pixels, torch.full((1, 1, 28, 28), 1.5))


def test_several_images_of_several_sizes_become_one_batch():
    images = [Image.new("L", (8, 8)), Image.new("RGB", (40, 30)), np.zeros((5, 9), np.uint8)]
    assert grey()(images=images, return_tensors="pt").pixel_values.shape == (3, 1, 28, 28)


@pytest.mark.parametrize("channels", [0, 2, 4, "3"])
def test_other_numbers_of_channels_are_refused(channels):
    with pytest.raises(ValueError, match=f"num_channels must be 1 or 3, got {channels!r}"):
        IT3ImageProcessor(num_channels=channels)


def test_it_survives_saving(tmp_path):
    processor = IT3ImageProcessor(num_channels=1, image_mean=[0.1], image_std=[0.2], size={"height": 9, "width": 7})
    processor.save_pretrained(tmp_path)
    again = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(again) is IT3ImageProcessor
    image = Image.new("RGB", (12, 12), (10, 200, 30))
    one, other = (each(images=image, return_tensors="pt").pixel_values for each in (processor, again))
    assert torch.equal(one, other)
    assert one.shape == (1, 1, 9, 7)


def test_one_mean_and_deviation_hold_for_all_channels(tmp_path):
    white = Image.new("RGB", (28, 28), "white")
    for processor in (IT3ImageProcessor(), IT3ImageProcessor(num_channels=3, image_mean=[0.6], image_std=[0.2])):
        processor.save_pretrained(tmp_path)
        for one in (processor, AutoImageProcessor.from_pretrained(tmp_path)):
            pixels = one(white, return_tensors="pt").pixel_values
            assert pixels.shape == (1, 3, 28, 28)
            expected = (1 - processor.image_mean[0]) / processor.image_std[0]
            torch.testing.assert_close(pixels, torch.full_like(pixels, expected))


def test_a_call_may_ask_for_other_channels_and_statistics():
    red = Image.new("RGB", (28, 28), "red")
    assert IT3ImageProcessor(num_channels=1)(red, num_channels=3, return_tensors="pt").pixel_values.shape[1] == 3
    assert IT3ImageProcessor()(red, num_channels=1, return_tensors="pt").pixel_values.shape[1] == 1
    for mean in (0.25, [0.25]):
        pixels = IT3ImageProcessor()(red, image_mean=mean, return_tensors="pt").pixel_values[0, :, 0, 0]
        torch.testing.assert_close(pixels, torch.tensor([1.5, -0.5, -0.5]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_channels": 2}, "num_channels must be 1 or 3, got 2"),
        ({"num_channels": 0}, "num_channels must be 1 or 3, got 0"),
        ({"image_mean": [0.1, 0.2]}, r"image_mean=\[0.1, 0.2\] has 2 values for num_channels=3"),
        ({"num_channels": 1, "image_std": [0.1, 0.2, 0.3]}, "image_std=.* has 3 values for num_channels=1"),
    ],
)
def test_a_call_that_fits_no_image_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        IT3ImageProcessor()(Image.new("L", (28, 28)), **arguments)


@pytest.mark.parametrize("value", [0, 1, 200, 255])
def test_integers_of_mode_i_may_be_of_8_bits(value):
    image = Image.fromarray(np.full((28, 28), value, np.int32))
    assert image.mode == "I"
    pixels = grey(do_rescale=False)(images=image, return_tensors="pt").pixel_values
    assert pixels.unique().tolist() == [value]


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16])
def test_colours_of_any_integers_become_the_same_grey(dtype):
    array = np.random.default_rng(0).integers(0, 256, (28, 28, 3))
    bytes_, others = (grey()(array.astype(kind), return_tensors="pt").pixel_values for kind in (np.uint8, dtype))
    assert torch.equal(bytes_, others)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_turned_upright(channels):
    upright = image_of_mode("L" if channels == 1 else "RGB")
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # shown after a quarter turn clockwise
    shown, expected = (
        grey(num_channels=channels)(image, return_tensors="pt").pixel_values for image in (turned, upright)
    )
    assert torch.equal(shown, expected)


SHADES = np.random.default_rng(0).integers(0, 256, (1, 40, 40), np.uint8)
READINGS = {
    "ToTensor": torch.tensor(SHADES) / 255,
    "float64": SHADES / 255,
    "half precision": (SHADES / 255).astype(np.float16),
    "rounding errors": SHADES / 255 * 1.0004 - 0.0002,
    "floats up to 255": SHADES.astype(np.float32),
    "int64": SHADES.astype(np.int64),
}


@pytest.mark.parametrize("size", [40, 16])
@pytest.mark.parametrize("array", READINGS.values(), ids=READINGS)
def test_arrays_are_told_by_type_and_range(array, size):
    processor = grey(size={"height": size, "width": size})
    ours, expected = (processor(images=[each], return_tensors="pt").pixel_values for each in (array, SHADES))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def test_truth_values_are_black_and_white():
    pixels = grey()(images=[SHADES > 128], return_tensors="pt").pixel_values
    assert pixels.min() < 0.1
    assert pixels.max() > 0.9


@pytest.mark.parametrize(
    ("array", "told"),
    [
        ((SHADES / 255 - 0.13) / 0.31, "values from -0.4194 to 2.806 of type float64"),
        (SHADES / 255 * 1.5, "values from 0 to 1.5 of type float64"),
        (SHADES / 255 * 16, "values from 0 to 16 of type float64"),
        (SHADES.astype(np.uint16) * 257, "values from 0 to 6.554e[+]04 of type uint16"),
        (SHADES.astype(np.int64) - 128, "values from -128 to 127 of type int64"),
        (np.where(SHADES > 100, np.nan, SHADES), "values from nan to nan"),
    ],
)
def test_values_of_no_picture_are_refused(array, told):
    with pytest.raises(ValueError, match=f"{told}.*are not those of a picture"):
        grey()(images=[array], return_tensors="pt")


def test_a_processor_that_does_not_rescale_takes_any_values():
    array = (SHADES[:, :28, :28] / 255 - 0.13) / 0.31
    pixels = grey()(images=[array], do_rescale=False, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(pixels, torch.tensor(array, dtype=pixels.dtype))
