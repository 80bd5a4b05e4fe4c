import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from hf_it3.corruptions import (
    SEVERITIES,
    Corruption,
    CorruptionTransform,
    corrupt,
    corruption_gallery,
    get_corruption,
    list_corruptions,
    list_suites,
    missing_corruptions,
    register,
)
from hf_it3.evaluation.corruptions import frost as frost_module
from hf_it3.evaluation.corruptions import registry as registry_module


NAMES = [*list_corruptions(), *missing_corruptions()]
GRADED = list_corruptions("graded")
RANDOM = [
    *(f"graded/{name}" for name in ("gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur")),
    *(f"graded/{name}" for name in ("snow", "frost", "fog", "elastic_transform", "shear", "rotate", "translate")),
    *(f"graded/{name}" for name in ("spatter", "dotted_line", "zigzag")),
    *("imagenet-c/gaussian_noise", "imagenet-c/shot_noise", "imagenet-c/impulse_noise", "imagenet-c/glass_blur"),
    *("imagenet-c/motion_blur", "imagenet-c/snow", "imagenet-c/frost", "imagenet-c/fog"),
    *("imagenet-c/elastic_transform", "mnist-c/shot_noise", "mnist-c/impulse_noise", "mnist-c/glass_blur"),
    *("mnist-c/motion_blur", "mnist-c/shear", "mnist-c/rotate", "mnist-c/translate", "mnist-c/fog"),
    *("mnist-c/spatter", "mnist-c/dotted_line", "mnist-c/zigzag"),
    *("digits-shift/noise_1", "digits-shift/noise_2", "digits-shift/salt_and_pepper"),
    *("float-noise/sigma_1", "float-noise/sigma_2"),
]
ONE_SETTING = ["mnist-c/stripe", "mnist-c/dotted_line", "mnist-c/zigzag", "mnist-c/canny_edges"]


@pytest.fixture(scope="session")
def frost_photographs(tmp_path_factory):
    """Five pictures of noise in the place of the photographs that an extra installs."""
    folder = tmp_path_factory.mktemp("frost")
    random = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        Image.fromarray(random.integers(0, 256, (240 + number, 260, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture(autouse=True)
def with_photographs(monkeypatch, frost_photographs):
    monkeypatch.setattr(frost_module, "_paths", lambda: frost_photographs)


@pytest.fixture(scope="module")
def digits():
    datasets = pytest.importorskip("sklearn.datasets")
    images = torch.tensor(datasets.load_digits().images[:48] / 16, dtype=torch.float32)[:, None]
    return torch.nn.functional.interpolate(images, size=(28, 28), mode="bilinear").clamp(0, 1)


@pytest.fixture(scope="module")
def photographs():
    datasets = pytest.importorskip("sklearn.datasets")
    images = torch.tensor(np.stack(datasets.load_sample_images().images)).permute(0, 3, 1, 2) / 255
    return images[..., 106:533]


def resized(photographs, side, copies):
    images = torch.nn.functional.interpolate(photographs, size=(side, side), mode="area").clamp(0, 1)
    return images.repeat(copies, 1, 1, 1)


def mean_changes(images, name):
    return [(corrupt(images, name, severity) - images).abs().mean().item() for severity in SEVERITIES]


def test_the_suites_are_the_published_ones():
    assert list_suites() == ["imagenet-c", "mnist-c", "graded", "digits-shift", "float-noise"]
    assert [name.removeprefix("imagenet-c/") for name in list_corruptions("imagenet-c")] == [
        *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
        *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    ]
    assert [name.removeprefix("mnist-c/") for name in list_corruptions("mnist-c")] == [
        *("shot_noise", "impulse_noise", "glass_blur", "motion_blur", "shear", "scale", "rotate", "brightness"),
        *("translate", "stripe", "fog", "spatter", "dotted_line", "zigzag", "canny_edges"),
    ]
    assert [name.removeprefix("digits-shift/") for name in list_corruptions("digits-shift")] == [
        *("clean", "noise_1", "noise_2", "contrast", "brightness", "blur", "salt_and_pepper", "rotation"),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_corruption_names_its_source_and_documents_itself(name):
    corruption = get_corruption(name)
    assert corruption.source
    assert corruption.function.__doc__
    has_none = corruption.suite in ("digits-shift", "float-noise") or name in ONE_SETTING
    assert corruption.severities == (() if has_none else SEVERITIES)
    assert (corruption.published_severity in SEVERITIES) == (corruption.suite == "mnist-c" and not has_none)


@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (2, 3, 33, 47), (2, 3, 96, 96), (2, 3, 6, 5), (1, 1, 120, 104)])
@pytest.mark.parametrize("name", NAMES)
def test_shape_dtype_and_range_are_kept(name, shape):
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    result = corrupt(images, name, severity=5)
    assert result.shape == images.shape
    assert result.dtype == images.dtype
    assert result.isfinite().all()
    if get_corruption(name).clipped:
        assert 0 <= result.min() <= result.max() <= 1
    assert torch.equal(images, before)
    assert result.data_ptr() != images.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["imagenet-c/defocus_blur", "imagenet-c/frost", "mnist-c/zigzag", "mnist-c/rotate"])
def test_other_precisions_give_the_same_picture(name, dtype, digits):
    images = digits[:4].to(dtype)
    result = corrupt(images, name)
    assert result.dtype == dtype
    torch.testing.assert_close(result.float(), corrupt(images.float(), name), atol=0.01, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_gets_the_same_bits_in_any_batch_and_order(name, digits):
    images = digits[:7]
    whole = corrupt(images, name, seed=3, indices=range(100, 107))
    parts = [corrupt(images[a:b], name, seed=3, indices=range(100 + a, 100 + b)) for a, b in ((0, 1), (1, 3), (3, 7))]
    assert torch.equal(whole, torch.cat(parts))
    order = torch.tensor([4, 0, 6, 2])
    assert torch.equal(whole[order], corrupt(images[order], name, seed=3, indices=order + 100))


def test_chunks_leave_no_seam(monkeypatch, digits):
    whole = corrupt(digits, "mnist-c/fog")
    monkeypatch.setattr(registry_module, "_CHUNK_VALUES", 5 * 28 * 28)
    assert torch.equal(whole, corrupt(digits, "mnist-c/fog"))


def test_memory_layout_does_not_matter(photographs):
    images = resized(photographs, 32, 2)
    for name in ("imagenet-c/contrast", "imagenet-c/glass_blur", "imagenet-c/jpeg_compression"):
        assert torch.equal(corrupt(images, name), corrupt(images.contiguous(memory_format=torch.channels_last), name))


@pytest.mark.parametrize("name", RANDOM)
def test_seed_and_index_change_a_random_corruption(name, digits):
    by_seed = [corrupt(digits[:1], name, seed=seed, indices=[5]) for seed in range(12)]
    by_index = corrupt(digits[:1].expand(12, -1, -1, -1), name, seed=5)
    choices = {"shear": 2, "rotate": 2, "translate": 3}.get(name.partition("/")[2], 10)
    for results in (by_seed, by_index):
        assert len({result.numpy().tobytes() for result in results}) >= choices


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(RANDOM)))
def test_the_others_do_not_depend_on_the_seed(name, digits):
    assert torch.equal(corrupt(digits[:2], name, seed=0), corrupt(digits[:2], name, seed=1, indices=[7, 8]))


@pytest.mark.parametrize("name", NAMES)
def test_global_random_state_is_neither_read_nor_written(name, digits):
    torch.manual_seed(0)
    np.random.seed(0)
    first = corrupt(digits[:2], name)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(0)))
    assert np.random.rand() == np.random.RandomState(0).rand()
    assert torch.equal(first, corrupt(digits[:2], name))


@pytest.mark.parametrize("name", GRADED)
def test_change_grows_with_severity_on_digits(name, digits):
    changes = mean_changes(digits, name)
    assert changes[0] > 0
    assert all(weaker < stronger for weaker, stronger in zip(changes, changes[1:], strict=False)), changes


@pytest.mark.parametrize("side", [32, 64, 128])
@pytest.mark.parametrize("name", GRADED)
def test_change_grows_with_severity_on_photographs(name, side, photographs):
    changes = mean_changes(resized(photographs, side, 4 if side < 100 else 2), name)
    assert changes[0] > 0
    assert all(weaker < stronger for weaker, stronger in zip(changes, changes[1:], strict=False)), changes


@pytest.mark.parametrize(("sigma", "deviation"), [(1, 0.3081), (2, 2 * 0.3081)])
def test_the_noise_of_pictures_is_of_8_bits_and_that_of_the_tutorial_is_not_clipped(sigma, deviation, digits):
    picture = corrupt(digits, f"digits-shift/noise_{sigma}")
    assert 0 == picture.min() < picture.max() == 1
    torch.testing.assert_close(picture, (255 * picture).round() / 255, rtol=0, atol=0)
    middle = torch.full((50, 1, 28, 28), 0.5)
    assert (corrupt(middle, f"digits-shift/noise_{sigma}") - middle).abs().mean() == pytest.approx(
        torch.empty(200_000).normal_(0, deviation).clamp(-0.5, 0.5).abs().mean().item(), rel=0.02
    )
    noise = corrupt(digits, f"float-noise/sigma_{sigma}") - digits
    assert noise.mean().abs() < 0.02
    assert noise.std().item() == pytest.approx(deviation, rel=0.02)
    assert (digits + noise).min() < 0
    assert (digits + noise).max() > 1


def test_conditions_without_severities_ignore_the_severity(digits):
    assert torch.equal(corrupt(digits, "digits-shift/noise_1", 1), corrupt(digits, "digits-shift/noise_1", 5))


def test_digit_conditions_do_what_their_names_say(digits):
    assert torch.equal(corrupt(digits, "digits-shift/clean"), digits)
    assert torch.allclose(corrupt(digits, "digits-shift/brightness"), (digits + 0.5).clamp(max=1))
    faint = corrupt(digits, "digits-shift/contrast")
    assert torch.allclose(faint.mean((1, 2, 3)), digits.mean((1, 2, 3)), atol=1e-5)
    assert torch.allclose(faint.std((1, 2, 3)), 0.4 * digits.std((1, 2, 3)), atol=1e-5)
    replaced = corrupt(torch.full((20, 1, 28, 28), 0.5), "digits-shift/salt_and_pepper")
    assert (replaced == 0).float().mean().item() == pytest.approx(0.15, abs=0.01)
    assert (replaced == 1).float().mean().item() == pytest.approx(0.15, abs=0.01)
    dot = torch.zeros(1, 1, 29, 29)
    dot[..., 14, 24] = 1
    row, column = np.unravel_index(corrupt(dot, "digits-shift/rotation").argmax().item(), (29, 29))
    assert (row, column) == (14 - round(10 * np.sin(np.radians(35))), 14 + round(10 * np.cos(np.radians(35))))


def test_blur_spreads_a_dot_by_its_sigma():
    dot = torch.zeros(1, 1, 56, 57)
    dot[..., 28, 28] = 1
    result = corrupt(dot, "digits-shift/blur")[0, 0]
    columns = torch.arange(57.0)
    assert result.sum().item() == pytest.approx(1, abs=1e-4)
    assert (result.sum(0) * (columns - 28) ** 2).sum().sqrt().item() == pytest.approx(2.5 * 56 / 28, rel=0.01)


def test_shot_noise_has_poisson_statistics():
    counts = corrupt(torch.full((8, 1, 64, 64), 0.2), "mnist-c/shot_noise", severity=1)
    assert counts.mean().item() == pytest.approx(0.2, rel=0.02)
    assert counts.var().item() == pytest.approx(0.2 / 60, rel=0.05)


def test_geometry_moves_what_it_says():
    dot = torch.zeros(1, 1, 29, 29)
    dot[..., 14, 24] = 1
    moved = np.argwhere(corrupt(dot, "mnist-c/translate", severity=4).numpy()[0, 0] == 1)[0] - [14, 24]
    assert sorted(abs(moved)) == [4, 4]
    shrunk = corrupt(dot, "mnist-c/scale", severity=5)[0, 0]
    assert np.unravel_index(shrunk.argmax().item(), (29, 29)) == (14, 19)
    flat = torch.full((1, 1, 28, 28), 0.25)
    assert (corrupt(flat, "mnist-c/stripe", severity=3) == 0.75).sum() == 28 * 14


def test_lines_are_drawn_on_black():
    black = torch.zeros(16, 1, 28, 28)
    for name in ("mnist-c/dotted_line", "mnist-c/zigzag"):
        lines = corrupt(black, name)
        assert ((lines > 0.2).flatten(1).sum(1) > 8).all()
        assert (lines > 0.2).float().mean() < 0.2


@pytest.mark.parametrize("side", [28, 112])
def test_mud_covers_more_of_images_of_any_size_at_each_severity(side):
    white = torch.ones(8, 1, side, side)
    covered = [(corrupt(white, "graded/spatter", severity) < 1).float().mean().item() for severity in SEVERITIES]
    assert 0.005 < covered[0] < covered[2] < 0.6
    assert covered == sorted(covered)


@pytest.mark.parametrize("side", [32, 64, 224])
def test_computed_frost_is_as_strong_as_its_severity_says(side):
    black, white = (torch.full((1, 3, side, side), value) for value in (0.0, 1.0))
    for severity in SEVERITIES:
        parameters = get_corruption("graded/frost").parameters(severity, side, side)
        assert corrupt(black, "graded/frost", severity).max().item() == pytest.approx(parameters["amount"])
        assert corrupt(white, "graded/frost", severity).min().item() == pytest.approx(parameters["keep"])


def test_colour_stays_where_only_the_value_changes(photographs):
    images = resized(photographs, 64, 1).clamp(0.01, 0.45)
    result = corrupt(images, "imagenet-c/brightness", severity=5)
    torch.testing.assert_close(result.amax(1), images.amax(1) + 0.5)
    torch.testing.assert_close(result / result.amax(1, keepdim=True), images / images.amax(1, keepdim=True))


def test_flat_images_stay_flat_under_blur():
    flat = torch.full((1, 3, 40, 52), 0.2)
    for name in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform", "contrast"):
        torch.testing.assert_close(corrupt(flat, f"imagenet-c/{name}", severity=5), flat, atol=1e-5, rtol=0)


def test_tables_follow_the_image_side():
    noise, disk = get_corruption("imagenet-c/gaussian_noise"), get_corruption("imagenet-c/defocus_blur")
    assert [noise.parameters(1, side, side + 9)["sigma"] for side in (28, 64, 224)] == [0.04, 0.04, 0.08]
    assert noise.parameters(5, 32, 32) == {"sigma": 0.10}
    assert noise.parameters(5, 500, 300) == {"sigma": 0.38}
    assert [disk.parameters(5, side, side)["radius"] for side in (28, 32, 224, 448)] == [1.5, 1.5, 10, 10]
    graded = get_corruption("graded/defocus_blur")
    assert [graded.parameters(5, side, side)["radius"] for side in (28, 32, 224, 448)] == [1.5, 1.5, 10, 20]


def test_an_empty_batch_stays_empty():
    assert corrupt(torch.empty(0, 3, 8, 8), "imagenet-c/fog").shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "imagenet-c/gausian_noise",
            "'imagenet-c/gausian_noise' is unknown; did you mean 'imagenet-c/gaussian",
        ),
        ("zigzags", "did you mean 'mnist-c/zigzag'"),
        (("mnist-c", "frost"), "'mnist-c/frost' is unknown; did you mean .*'imagenet-c/frost'"),
        ("shot_noise", "say 'imagenet-c/shot_noise' or 'mnist-c/shot_noise'"),
        ("xyz", "list_corruptions"),
    ],
)
def test_unknown_names_are_answered_with_close_ones(name, message):
    with pytest.raises(ValueError, match=message):
        get_corruption(name)


def test_names_may_be_qualified_paired_or_bare():
    expected = get_corruption("mnist-c/zigzag")
    assert get_corruption(("mnist-c", "zigzag")) is expected
    assert get_corruption("zigzag") is expected
    assert get_corruption(expected) is expected


def test_an_unknown_suite_is_named():
    with pytest.raises(ValueError, match="suite='cifar-c' is unknown; choose one of imagenet-c, mnist-c"):
        list_corruptions("cifar-c")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": np.zeros((1, 1, 4, 4))}, "images are a ndarray"),
        ({"images": torch.zeros(1, 4, 4)}, r"shape \(1, 4, 4\)"),
        ({"images": torch.zeros(1, 2, 4, 4)}, r"shape \(1, 2, 4, 4\)"),
        ({"images": torch.zeros(1, 1, 4, 4, dtype=torch.uint8)}, "dtype torch.uint8; divide"),
        ({"images": torch.full((1, 1, 4, 4), 255.0)}, "range from 255 to 255"),
        ({"images": torch.full((1, 1, 4, 4), -0.4)}, "before the normalisation"),
        ({"images": torch.full((1, 1, 4, 4), torch.nan)}, "range from nan"),
        ({"severity": 0}, "severity=0 is not one of"),
        ({"severity": 6}, "severity=6"),
        ({"severity": True}, "severity=True"),
        ({"severity": "3"}, "severity='3'"),
        ({"indices": [1, 2]}, "2 indices for 1 images"),
        ({"indices": [0.5]}, "are not ints"),
        ({"seed": None}, "seed=None"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        corrupt(**{"images": torch.zeros(1, 1, 4, 4), "name": "mnist-c/fog", **arguments})


def test_own_corruptions_can_be_registered_once(monkeypatch, digits):
    monkeypatch.setattr(registry_module, "_REGISTRY", dict(registry_module._REGISTRY))

    def invert(images, random):
        return 1 - images

    register(Corruption("invert", "own", invert, tables={28: {}}, source="this test"))
    assert torch.equal(corrupt(digits, "own/invert"), 1 - digits)
    with pytest.raises(ValueError, match="'own/invert' is already registered"):
        register(Corruption("invert", "own", invert, tables={28: {}}, source="this test"))


def test_transform_corrupts_pil_images_wherever_they_are(digits):
    pictures = [Image.fromarray((image[0] * 255).byte().numpy()) for image in digits[:3]]
    transform = pickle.loads(pickle.dumps(CorruptionTransform("mnist-c/spatter", severity=5, seed=2)))
    batch = transform({"image": pictures, "label": [0, 1, 2]})
    assert batch["label"] == [0, 1, 2]
    for picture, result in zip(pictures, batch["image"], strict=True):
        assert (result.mode, result.size) == ("L", picture.size)
        assert result.tobytes() == transform(picture).tobytes() != picture.tobytes()


def test_transform_makes_other_modes_rgb():
    result = CorruptionTransform("imagenet-c/contrast")(Image.new("RGBA", (40, 30), (200, 100, 50, 255)))
    assert (result.mode, result.size) == ("RGB", (40, 30))
    assert result.getpixel((0, 0)) == (200, 100, 50)


def test_transform_serves_a_dataset(digits):
    datasets = pytest.importorskip("datasets")
    pictures = [Image.fromarray((image[0] * 255).byte().numpy()) for image in digits[:2]]
    dataset = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1]})
    dataset = dataset.cast_column("image", datasets.Image())
    dataset.set_transform(CorruptionTransform("mnist-c/shot_noise"))
    assert dataset[1]["image"].tobytes() == dataset[:2]["image"][1].tobytes() != pictures[1].tobytes()


def test_transform_names_a_missing_column_and_a_wrong_type():
    transform = CorruptionTransform("mnist-c/fog")
    with pytest.raises(ValueError, match="column='image' is not in the batch; it has img"):
        transform({"img": []})
    with pytest.raises(ValueError, match="got a Tensor, not a PIL image"):
        transform(torch.zeros(1, 28, 28))


def test_gallery_has_a_row_per_corruption_and_a_column_per_severity(digits, tmp_path):
    pytest.importorskip("matplotlib")
    figure = corruption_gallery(digits[:2], "mnist-c", names=["fog", "mnist-c/rotate"], severities=[1, 5])
    assert len(figure.axes) == 2 * 3
    assert [axis.get_title() for axis in figure.axes[:3]] == ["clean", "severity 1", "severity 5"]
    figure.savefig(tmp_path / "gallery.png")
    with Image.open(tmp_path / "gallery.png") as picture:
        assert np.asarray(picture).std() > 10


def test_gallery_of_conditions_has_a_column_per_condition(digits):
    pytest.importorskip("matplotlib")
    assert len(corruption_gallery(digits[:3], "digits-shift").axes) == 3 * 8


def test_gallery_refuses_to_draw_nothing():
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="at least one image"):
        corruption_gallery(torch.empty(0, 1, 8, 8), "mnist-c")

    with pytest.raises(ValueError, match="names is empty"):
        corruption_gallery(torch.zeros(1, 1, 8, 8), "mnist-c", names=[])


@pytest.mark.parametrize("severity", [0, 9, "3"])
def test_transform_refuses_a_severity_when_it_is_made(severity):
    with pytest.raises(ValueError, match=f"severity={severity!r} is not one of"):
        CorruptionTransform("mnist-c/fog", severity=severity)


def test_transform_reads_modes_as_the_pipeline_does():
    transform = CorruptionTransform("digits-shift/clean")
    assert transform(Image.new("RGBA", (4, 4), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
    deep = Image.fromarray(np.full((4, 4), 30000, np.uint16))
    assert transform(deep).getpixel((0, 0)) == (116, 116, 116)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 3)])
def test_tiny_images_are_moved_out_of_sight_and_have_no_edges(size):
    images = torch.ones(2, 1, *size)
    assert corrupt(images, "mnist-c/translate", severity=5).sum() == 0
    assert corrupt(images, "mnist-c/canny_edges").sum() == 0
