"""The suites `imagenet-c` and `mnist-c` are the published ones: figures of the published code, and the code itself.

`published_figures.json` holds what `corruption_oracle.py` measured on the published code: for each image side,
corruption and severity the strength and the detail across and down (see `figures`). These tests need none of it.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from corruption_oracle import published, published_mnist_c
from PIL import Image
from published_corruptions import DETERMINISTIC, digit, figures, picture, relative

from hf_it3.corruptions import SEVERITIES, corrupt, get_corruption, missing_corruptions
from hf_it3.evaluation.corruptions.frost import why_no_photographs


FIGURES = json.loads((Path(__file__).parent / "published_figures.json").read_text())
IMAGENET_C, MNIST_C = list(FIGURES["224"]), list(FIGURES["28"])
# Images that a random corruption is averaged over, and how far its figures may then be from the published ones.
COUNT = {224: 12, 32: 64, 28: 96}
MORE = {
    ("snow", 224): 32,
    ("frost", 224): 100,
    ("frost", 32): 400,
    ("spatter", 28): 800,
    ("elastic_transform", 32): 150,
}
SPREAD = {
    **{"motion_blur": 0.10, "elastic_transform": 0.10, "fog": 0.08, "snow": 0.08, "frost": 0.10, "spatter": 0.10},
    **{"dotted_line": 0.08, "zigzag": 0.08, "translate": 0.05, "shear": 0.05, "rotate": 0.05},
}


def corrupted(side: int, name: str, severity: int | None, count: int) -> np.ndarray:
    """Corrupts the picture of that side `count` times; (N, H, W, C) or (N, H, W) from 0 to 255."""
    suite, image = ("mnist-c", digit()[..., None]) if side == 28 else ("imagenet-c", picture(side))
    images = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    result = corrupt(images.expand(count, -1, -1, -1), f"{suite}/{name}", severity) * 255
    return result.permute(0, 2, 3, 1).squeeze(-1).numpy()


def original(side: int, count: int) -> np.ndarray:
    return np.repeat((digit() if side == 28 else picture(side))[None], count, 0)


def compare(side: int, name: str, severity: int | None, expected: list[float]) -> None:
    count = 1 if name in DETERMINISTIC else MORE.get((name, side), COUNT[side])
    ours = figures(original(side, count), corrupted(side, name, severity, count))
    # JPEG and box filters depend on the version of Pillow a little.
    allowed = 0.01 if name in DETERMINISTIC else SPREAD.get(name, 0.05)
    differences = [relative(value, reference) for value, reference in zip(ours, expected, strict=True)]
    assert max(differences) <= allowed, f"severity {severity}: {ours} instead of {expected}"


@pytest.mark.parametrize("side", [32, 224])
@pytest.mark.parametrize("name", IMAGENET_C)
def test_imagenet_c_has_the_strength_and_the_detail_of_the_published_code(name, side):
    if name == "frost" and (reason := why_no_photographs()):
        pytest.skip(reason)
    for severity, expected in zip(SEVERITIES, FIGURES[str(side)][name], strict=True):
        compare(side, name, severity, expected)


@pytest.mark.parametrize("name", MNIST_C)
def test_mnist_c_has_the_strength_and_the_detail_of_the_published_code(name):
    severities = get_corruption(f"mnist-c/{name}").severities or (None,)
    for severity, expected in zip(severities, FIGURES["28"][name], strict=True):
        compare(28, name, severity, expected)


def test_mnist_c_is_published_at_the_severities_of_its_code():
    published = {"shot_noise": 5, "impulse_noise": 4, "glass_blur": 1, "motion_blur": 1, "shear": 2, "scale": 3}
    published |= {"rotate": 2, "brightness": 5, "translate": 3, "fog": 5, "spatter": 4}
    for name in MNIST_C:
        corruption = get_corruption(f"mnist-c/{name}")
        assert corruption.published_severity == published.get(name)
        expected = corrupt(torch.full((1, 1, 28, 28), 0.4), corruption, published.get(name))
        assert torch.equal(corrupt(torch.full((1, 1, 28, 28), 0.4), corruption), expected)


def test_motion_goes_sideways_and_to_the_left():
    """A pixel reads what is to its right, up to 45 degrees up and down: a dot leaves a trace on its left."""
    dot = torch.zeros(24, 3, 65, 65)
    dot[:, :, 32, 32] = 1
    for side, suite in ((65, "imagenet-c"), (65, "mnist-c")):
        trace = corrupt(dot, f"{suite}/motion_blur", severity=1).mean(1)
        rows, columns = (torch.arange(float(side)) - 32 for _ in range(2))
        weight = trace.sum((1, 2))
        across, down = (trace.sum(1) @ columns) / weight, (trace.sum(2) @ rows) / weight
        assert (across < -0.4).all()
        assert (down.abs() <= across.abs() + 0.5).all()
        assert down.min() < 0 < down.max()


def test_snow_falls_within_45_degrees_of_the_vertical():
    black = torch.zeros(12, 3, 224, 224)
    flakes = corrupt(black, "imagenet-c/snow", severity=5)
    across, down = flakes.diff(dim=3).abs().mean(), flakes.diff(dim=2).abs().mean()
    assert across > 1.2 * down


def test_fog_brightens_within_the_range_of_the_image():
    images = torch.full((8, 3, 64, 64), 0.3)
    foggy = corrupt(images, "imagenet-c/fog", severity=5)
    # (x + amount * clouds) * max / (max + amount), with clouds that reach from 0 to 1 on this square.
    assert foggy.amin().item() == pytest.approx(0.3 * 0.3 / 2.3, abs=1e-4)
    assert foggy.amax().item() == pytest.approx(0.3, abs=1e-4)


def test_canny_edges_start_where_the_gradient_exceeds_the_high_threshold_and_go_on_above_the_low_one():
    """A step of height h has a Sobel gradient of 2.7 h: 0.16 for 0.06, 0.24 for 0.09."""
    step = torch.zeros(2, 1, 28, 28)
    step[:, :, :, 14:] = 0.06
    step[1, :, :14, 14:] = 0.09
    faint, mixed = corrupt(step, "mnist-c/canny_edges")[:, 0]
    assert faint.sum() == 0
    assert torch.equal(mixed[1:-1].amax(1), torch.ones(26))
    assert torch.equal(mixed.amax(0).nonzero().flatten(), torch.tensor([13, 14]))


def test_lengths_are_pixels_at_any_size_and_small_images_have_the_tables_of_cifar_10_c_and_tiny_imagenet_c():
    corruption = get_corruption("imagenet-c/motion_blur")
    sides = [corruption.parameters(5, side, side) for side in (32, 64, 224, 384)]
    assert [one["radius"] for one in sides] == [9, 12, 20, 20]
    assert [one["sigma"] for one in sides] == [2.5, 3, 15, 15]


def test_severities_are_drawn_anew():
    grey = torch.full((1, 3, 32, 32), 0.5)
    weak, strong = (corrupt(grey, "imagenet-c/gaussian_noise", severity) - 0.5 for severity in (1, 2))
    assert np.corrcoef(weak.flatten(), strong.flatten())[0, 1] < 0.1


def test_missing_photographs_leave_frost_out_and_say_what_to_install(monkeypatch):
    monkeypatch.setattr("hf_it3.evaluation.corruptions.frost._paths", lambda: [])
    assert "hf-it3[frost]" in missing_corruptions("imagenet-c")["imagenet-c/frost"]
    with pytest.raises(ImportError, match=r"frost cannot be drawn: .*hf-it3\[frost\]"):
        corrupt(torch.zeros(1, 3, 32, 32), "imagenet-c/frost")


@pytest.mark.parametrize(
    ("side", "shares"),
    [
        (32, [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)]),
        (64, [(1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)]),
        (224, [(1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)]),
    ],
)
def test_frost_adds_parts_of_photographs_that_small_images_see_smaller(side, shares, monkeypatch, tmp_path):
    scale = {32: 0.2, 64: 0.3, 224: 1}[side]
    slope = np.repeat(np.arange(1500)[None] / 1500 * 100, 1600, 0)
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path in paths:
        Image.fromarray(np.repeat(slope[..., None], 3, -1).astype(np.uint8)).save(path)
    monkeypatch.setattr("hf_it3.evaluation.corruptions.frost._paths", lambda: paths)
    for severity, (keep, amount) in zip(SEVERITIES, shares, strict=True):
        frosted = corrupt(torch.full((8, 3, side, side), 0.5), "imagenet-c/frost", severity)
        texture = (frosted - 0.5 * keep) / amount
        assert -1e-5 < texture.min() < texture.max() < 0.4
        steps = (texture[..., -1] - texture[..., 0]).mean().item() / (side - 1)
        assert steps == pytest.approx(100 / 255 / 1500 / scale, rel=0.1)


# With the published code at hand: every pixel of the deterministic ones.


@pytest.mark.parametrize("side", [32, 224])
def test_deterministic_corruptions_of_imagenet_c_are_those_of_the_published_code_by_pixels(side):
    functions = published(side)
    for name in set(DETERMINISTIC) & set(IMAGENET_C) & set(functions):
        for severity in SEVERITIES:
            expected = np.asarray(functions[name](Image.fromarray(picture(side)), severity), float)
            np.testing.assert_allclose(corrupted(side, name, severity, 1)[0], expected, atol=0.01, err_msg=name)


def test_deterministic_corruptions_of_mnist_c_are_those_of_the_published_code_by_pixels():
    functions = published_mnist_c()
    for name in ("scale", "brightness", "stripe", "canny_edges"):
        expected = np.asarray(functions[name](Image.fromarray(digit())), float)
        np.testing.assert_allclose(corrupted(28, name, None, 1)[0], expected, atol=0.01, err_msg=name)


@pytest.mark.parametrize("name", ["shear", "rotate", "translate", "dotted_line", "zigzag"])
def test_draws_of_mnist_c_are_draws_of_the_published_code(name):
    """Few outcomes: most draws of the published code are among many of ours, to the pixel."""
    np.random.seed(0)
    function = published_mnist_c()[name]
    ours = corrupted(28, name, None, 2500)
    distances = [np.abs(ours - np.asarray(function(Image.fromarray(digit())))).max((1, 2)).min() for _ in range(20)]
    assert np.median(distances) < 0.01


@pytest.mark.parametrize("name", ["gaussian_noise", "impulse_noise", "fog", "snow"])
def test_random_corruptions_have_the_spectrum_of_the_published_code(name):
    np.random.seed(0)
    count, function = 200, published(32)[name]
    theirs = np.stack([np.asarray(function(Image.fromarray(picture(32)), 5), float) for _ in range(count)])
    spectra = [
        (np.abs(np.fft.fft2(images - original(32, count), axes=(1, 2))) ** 2).mean((0, 3))
        for images in (theirs, corrupted(32, name, 5, count))
    ]
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(32), np.fft.fftfreq(32)))
    bands = [(frequency >= low) & (frequency < low + 0.15) for low in (0.01, 0.16, 0.31, 0.46)]
    for band in bands:
        assert spectra[1][band].mean() == pytest.approx(spectra[0][band].mean(), rel=0.15)
