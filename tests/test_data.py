"""Data sets: their splits, rows and class names, streamed or not."""

from typing import ClassVar

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from trainer_fixtures import quiet_arguments, tiny
from transformers import ViTConfig, ViTImageProcessorPil

from hf_it3 import IT3ForImageClassification, IT3ImageProcessor, IT3Trainer
from hf_it3.data import ImageCollator, class_names, first_rows, select_split
from hf_it3.evaluation import evaluate_robustness
from hf_it3.evaluation.pixels import pixel_collator
from hf_it3.hub.adapted_model import adapt_to_images
from hf_it3.it3.pipeline_it3 import IT3Pipeline


def labels(rows):
    return [row["label"] for row in rows]


@pytest.fixture(params=["at hand", "streamed"])
def splits(request, digits):
    if request.param == "at hand":
        return digits
    return {name: rows.to_iterable_dataset() for name, rows in digits.items()}


@pytest.mark.parametrize(
    ("wanted", "split", "rows"),
    [
        ("test[:7]", "test", range(7)),
        ("train[1290:2000]", "train", range(1290, 1297)),
        ("train[1290:]", "train", range(1290, 1297)),
        ("test", "test", range(500)),
    ],
)
def test_a_range_of_a_split_is_those_rows(splits, digits, wanted, split, rows):
    assert labels(select_split(splits, wanted)) == digits[split].select(rows)["label"][:]


@pytest.mark.parametrize("wanted", ["validation", "test[7:7]", "test[1:2:3]", "test[-3:]"])
def test_a_split_that_is_not_there_is_refused(splits, wanted):
    with pytest.raises(ValueError, match="has no"):
        select_split(splits, wanted)


def test_a_range_beyond_the_end_is_refused(digits):
    with pytest.raises(ValueError, match=r"'test\[600:\]' has no rows; 'test' has 500"):
        select_split(digits, "test[600:]")


@pytest.mark.parametrize(("count", "expected"), [(3, 3), (600, 500), (None, 500)])
def test_first_rows_are_as_many_as_asked_for_or_there_are(splits, digits, count, expected):
    assert labels(first_rows(splits["test"], count)) == digits["test"]["label"][:expected]


def test_first_rows_of_a_list(digits):
    rows = list(digits["test"].select(range(5)))
    assert list(first_rows(rows, 3)) == rows[:3]


@pytest.mark.parametrize("length", [None, 5])
def test_first_rows_of_an_iterable_data_set_of_torch(length):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(range(5))

    if length is not None:
        Stream.__len__ = lambda self: length
    assert list(first_rows(Stream(), 3)) == [0, 1, 2]
    assert list(first_rows(Stream(), 9)) == [0, 1, 2, 3, 4]


def test_class_names_are_those_of_the_label_column(splits, digits):
    assert class_names(splits["test"]) == list("0123456789")
    letters = digits["test"].add_column("letter", ["a"] * 500).cast_column("letter", datasets.ClassLabel(names=["a"]))
    assert class_names(letters, "letter") == ["a"]
    assert class_names(letters, "nothing") is None
    assert class_names(digits["test"].cast_column("label", datasets.Value("int64"))) is None
    assert class_names([{"label": 3}]) is None


def stock_processor(**values):
    return ViTImageProcessorPil(size={"height": 8, "width": 8}, **values)


def turned(image):
    image.getexif()[0x0112] = 6  # shown after a quarter turn
    return image


PICTURES = {
    "transparent": Image.new("RGBA", (8, 8), (0, 0, 0, 0)),
    "16 bits": Image.fromarray(np.full((8, 8), 30000, np.uint16)),
    "grey": Image.new("L", (8, 8), 50),
    "turned": turned(Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))),
}


@pytest.fixture(scope="module")
def colour_model():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    return IT3ForImageClassification.from_backbone(ViTConfig(image_size=8, patch_size=4, num_labels=2, **sizes))


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("processor", [stock_processor(), IT3ImageProcessor(size={"height": 8, "width": 8})])
def test_a_batch_holds_the_pixels_that_the_pipeline_sees(name, processor, colour_model):
    pipeline = IT3Pipeline(colour_model, image_processor=processor)
    batch = ImageCollator(processor)([{"image": PICTURES[name]}])
    assert torch.equal(batch["pixel_values"], pipeline.preprocess(PICTURES[name])["pixel_values"])


@pytest.mark.parametrize("mean", [0.5, None])
def test_processors_with_one_mean_or_none_take_grey_and_colour(mean):
    collator = ImageCollator(stock_processor(do_normalize=mean is not None))
    collator.image_processor.image_mean = mean
    collator.image_processor.image_std = mean
    assert collator([{"image": PICTURES["grey"]}])["pixel_values"].shape == (1, 1, 8, 8)
    assert collator([{"image": PICTURES["transparent"]}])["pixel_values"].shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    "label",
    [
        3,
        np.uint8(3),
        np.int32(3),
        np.uint16(3),
        np.uint64(3),
        torch.tensor(3, dtype=torch.int16),
        np.array(3, np.int8),
    ],
)
def test_class_indices_of_any_integer_type_become_int64(label, processor):
    labels = ImageCollator(processor, num_labels=10)([{"image": PICTURES["grey"], "label": label}] * 2)["labels"]
    assert labels.dtype == torch.int64
    assert labels.tolist() == [3, 3]


def test_several_labels_per_image_stay_as_they_are(processor):
    for label in ([1.0, 0.0], torch.tensor([1.0, 0.0])):
        labels = ImageCollator(processor)([{"image": PICTURES["grey"], "label": label}] * 3)["labels"]
        assert torch.equal(labels, torch.tensor([[1.0, 0.0]] * 3))


@pytest.mark.parametrize("label", [None, "cat"])
def test_a_label_that_is_no_class_index_is_named_with_its_column(label, processor):
    rows = [{"image": PICTURES["grey"], "fine_label": value} for value in (0, label)]
    with pytest.raises(ValueError, match=f"label column 'fine_label' holds {label!r}, where a class index is needed"):
        ImageCollator(processor)(rows)


@pytest.mark.parametrize("label", [None, "cat"])
def test_adapting_needs_no_labels(label, digits, trained_directory, tmp_path):
    images = digits["test"].select(range(6)).remove_columns("label")
    rows = datasets.DatasetDict({"test": images.add_column("label", [label] * 6)})
    rows.save_to_disk(tmp_path / "rows")
    adapted = adapt_to_images(trained_directory, [str(tmp_path / "rows")], gate=None)
    assert adapted.config.base_model["num_images"] == 6


def test_a_local_data_set_is_adapted_to(digits, trained_directory, tmp_path):
    digits["test"].select(range(6)).to_parquet(tmp_path / "rows" / "test-00000-of-00001.parquet")
    adapted = adapt_to_images(trained_directory, [str(tmp_path / "rows")], gate=None)
    assert adapted.config.base_model["num_images"] == 6


def test_adapting_turns_photographs_upright(trained_directory, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    for name, image, data in (("upright", pixels, None), ("turned", pixels[::-1, ::-1], exif)):
        (tmp_path / name).mkdir()
        Image.fromarray(image).save(tmp_path / name / "photo.png", exif=data)
    one, other = (
        adapt_to_images(trained_directory, [str(tmp_path / name)], gate=None).state_dict()
        for name in ("upright", "turned")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_adapting_mixes_the_classes_of_a_sorted_data_set(digits, trained_directory, tmp_path):
    rows = digits["test"].select(range(64)).sort("label")
    rows.to_parquet(tmp_path / "rows" / "test-00000-of-00001.parquet")
    settings = {"gate": None, "batch_size": 16}
    shuffled, again, given = (
        adapt_to_images(trained_directory, [str(tmp_path / "rows")], **settings, **order).state_dict()
        for order in ({}, {}, {"order": "given"})
    )
    assert all(torch.equal(value, again[name]) for name, value in shuffled.items())
    assert not all(torch.equal(value, given[name]) for name, value in shuffled.items())
    with pytest.raises(ValueError, match="order='sorted' must be one of 'shuffled', 'given'"):
        adapt_to_images(trained_directory, [str(tmp_path / "rows")], order="sorted")


def test_a_data_set_without_images_is_refused_before_the_progress_bar(digits, trained_directory, tmp_path, capsys):
    digits["test"].remove_columns("image").to_parquet(tmp_path / "rows" / "test-00000-of-00001.parquet")
    capsys.readouterr()
    with pytest.raises(ValueError, match="no image column: looked for image, img, pixel_values"):
        adapt_to_images(trained_directory, [str(tmp_path / "rows")])
    assert "Adapting" not in capsys.readouterr().err


@pytest.mark.parametrize("processor_class", [ViTImageProcessorPil, IT3ImageProcessor])
@pytest.mark.parametrize("kind", ["bytes", "floats", "channels first", "grey", "tensor of bytes"])
def test_arrays_are_prepared_as_in_the_pipeline(processor_class, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    image = {
        "bytes": pixels,
        "floats": (pixels / 255).astype(np.float32),
        "channels first": np.moveaxis(pixels, -1, 0),
        "grey": pixels[..., 0],
        "tensor of bytes": torch.from_numpy(pixels).movedim(-1, 0),
    }[kind]
    image_processor = processor_class(size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    model = IT3ForImageClassification.from_backbone(
        ViTConfig(
            image_size=16, patch_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
    )
    expected = IT3Pipeline(model, image_processor=image_processor).preprocess(image)["pixel_values"]
    batch = ImageCollator(image_processor)([{"image": image, "label": 0}])
    torch.testing.assert_close(batch["pixel_values"], expected)
    assert expected.std() > 0.3  # neither black nor white
    assert pixel_collator(model.config, image_processor)([{"image": image, "label": 0}])["pixel_values"].std() > 0.15


def test_arrays_that_are_no_images_are_named():
    image_processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    rows = [{"image": np.zeros((4, 4, 3), np.uint8)}, {"image": np.full((4, 4, 3), -3.0)}]
    with pytest.raises(ValueError, match="image 1 of a batch cannot be processed"):
        ImageCollator(image_processor)(rows)


class Pairs(torch.utils.data.Dataset):
    """A data set as those of torchvision: pairs of image and label, and names of the classes."""

    classes: ClassVar = [f"digit {number}" for number in range(10)]

    def __init__(self, rows, transform=None):
        self.rows, self.transform = rows, transform or (lambda image: image)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, position):
        row = self.rows[position]
        return self.transform(row["image"]), row["label"]


@pytest.mark.parametrize("is_tensor", [False, True])
def test_pairs_of_image_and_label_train_and_are_evaluated(digits, processor, tmp_path, is_tensor):
    transform = (lambda image: processor(images=image, return_tensors="pt").pixel_values[0]) if is_tensor else None
    pairs = Pairs(digits["train"].select(range(32)), transform)
    results = []
    for dataset in (pairs, digits["train"].select(range(32))):
        model = tiny()
        trainer = IT3Trainer(
            model, quiet_arguments(tmp_path), train_dataset=dataset, eval_dataset=dataset, processing_class=processor
        )
        trainer.train()
        results.append((trainer.evaluate()["eval_loss"], model.config.id2label))
    assert results[0][0] == pytest.approx(results[1][0])
    assert results[0][1][3] == "digit 3"
    accuracies = [
        evaluate_robustness(
            model, one, corruptions="none", methods="none", image_processor=processor, show_progress=False
        ).accuracy("clean", "none")
        for one in (pairs, digits["train"].select(range(32)))
    ]
    assert accuracies[0] == accuracies[1]


def test_lists_of_values_are_refused_with_the_way_out(processor):
    with pytest.raises(ValueError, match=r"image 0 of a batch is a list of values; .* tensors with .with_format"):
        ImageCollator(processor)([{"pixel_values": [[0.5, 0.1], [0.2, 0.3]], "label": 1}])


def test_rows_that_are_neither_are_refused_by_name(processor, tmp_path):
    trainer = IT3Trainer(tiny(), quiet_arguments(tmp_path), train_dataset=[torch.rand(1, 16, 16)] * 8)
    with pytest.raises(ValueError, match=r"must be dictionaries, or pairs \(image, label\), got a Tensor"):
        trainer.train()
