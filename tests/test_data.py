"""Data sets: their splits, rows and class names, streamed or not."""

import datasets
import pytest
import torch

from hf_it3.data import class_names, first_rows, select_split


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
