"""`hf-it3 predict`: image files in, answers out."""

import json

import numpy as np
import pytest
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification, pipeline

from hf_it3.cli import main
from hf_it3.data import in_reading_order


SHIFT = ("distance_shift", "feature_shift")


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("b.png", "a.png", "c.png"):
        Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_a_folder_gives_one_line_per_image_in_alphabetical_order(folder, trained_directory, capsys):
    assert main(["predict", str(trained_directory), str(folder), "--no_gate"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(folder / name) for name in ("a.png", "b.png", "c.png")]


def spoiled(row):
    """A bright digit, on which the gate opens."""
    return Image.fromarray((np.asarray(row["image"]) * 0.6 + 100).astype(np.uint8))


@pytest.fixture
def class_folders(tmp_path, digits):
    """Forty-eight bright digits in a folder for each class; the files with their labels."""
    for position, row in enumerate(digits["test"].select(range(48))):
        path = tmp_path / "sorted" / str(row["label"]) / f"{position}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        spoiled(row).save(path)
    return tmp_path / "sorted"


def answers_of(capsys, *arguments):
    assert main(["predict", *map(str, arguments)]) == 0
    return [line.split("\t") for line in capsys.readouterr().out.splitlines()]


def test_folders_of_classes_are_read_in_a_mix_that_repeats(class_folders, trained_directory, capsys):
    options = (trained_directory, class_folders, "--batch_size", 16, "--top_k", 10)
    shuffled, again = (answers_of(capsys, *options) for _ in range(2))
    given = answers_of(capsys, *options, "--order", "given")
    other = answers_of(capsys, *options, "--seed", 1)
    files = [str(file) for file in sorted(class_folders.glob("*/*.png"))]
    assert [line[0] for line in shuffled] == [line[0] for line in given] == files
    assert shuffled == again
    assert shuffled != given
    assert shuffled != other
    classifier = pipeline("it3-image-classification", model=trained_directory)
    order = in_reading_order(list(range(48)))
    batch = classifier([files[position] for position in order[:16]], top_k=10)
    for position, classes in zip(order, batch, strict=False):
        assert shuffled[position][1:] == [f"{entry['label']} {entry['score']:.3f}" for entry in classes]


def test_progress_is_shown_unless_it_is_not_wanted(folder, trained_directory, capsys):
    assert main(["predict", str(trained_directory), str(folder), "--no_progress"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["predict", str(trained_directory), str(folder)]) == 0
    shown = {line.partition(":")[0] for line in capsys.readouterr().err.split("\r")}
    assert {"Loading weights", "Classifying"} <= shown


def test_json_lines_hold_unadapted_scores_and_whether_an_image_was_adapted(folder, trained_directory, capsys):
    output = folder / "answers.jsonl"
    arguments = ["predict", str(trained_directory), str(folder), "--no_gate", "--top_k", "2", "--output", str(output)]
    assert main(arguments) == 0
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(answers) == 3
    for answer in answers:
        assert len(answer["classes"]) == 2
        shown = {"label", "score", "unadapted_score", "idempotence", "adapted", "averaged", *SHIFT}
        assert shown == set(answer["classes"][0])
        assert answer["classes"][0]["adapted"]


def test_without_adaptation_the_plain_model_answers(folder, trained_directory, capsys):
    main(["predict", str(trained_directory), str(folder / "a.png"), "--no_adapt", "--top_k", "10"])
    plain = capsys.readouterr().out
    main(["predict", str(trained_directory), str(folder), "--no_gate", "--top_k", "10"])
    assert plain.splitlines()[0] != capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize(
    ("names", "message"),
    [(["missing.png"], "missing.png does not exist"), (["notes.txt"], "notes.txt"), (["empty"], "no image files")],
)
def test_mistakes_end_in_one_line_that_names_the_culprit(folder, trained_directory, capsys, names, message):
    (folder / "empty").mkdir()
    assert main(["predict", str(trained_directory), *[str(folder / name) for name in names]]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(error) == 1
    assert message in error[0]


@pytest.mark.parametrize("option", ["--batch_size", "--top_k"])
@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_counts_below_one_are_refused(folder, trained_directory, option, value, capsys):
    with pytest.raises(SystemExit) as end:
        main(["predict", trained_directory, str(folder), option, value])
    assert end.value.code == 2
    message = "'many' is not an integer" if value == "many" else f"must be at least 1, got {value}"
    assert f"error: argument {option}: {message}" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["missing/answers.jsonl", ""])
def test_where_nothing_can_be_written_nothing_is_classified(folder, trained_directory, output, capsys):
    assert main(["predict", trained_directory, str(folder), "--output", str(folder / output)]) == 2
    captured = capsys.readouterr()
    assert "is no file in an existing folder" in captured.err
    assert "Classifying" not in captured.err


@pytest.mark.parametrize("writes", [False, True])
def test_files_that_cannot_be_read_are_named_and_the_others_answered(folder, trained_directory, capsys, writes):
    answers = folder / "answers.jsonl"
    options = ["--batch_size", "2", *(["--output", str(answers)] if writes else [])]
    assert main(["predict", str(trained_directory), str(folder), *options]) == 0
    expected = answers.read_text() if writes else capsys.readouterr().out
    capsys.readouterr()
    (folder / "b2.png").write_bytes((folder / "b.png").read_bytes()[:40])
    (folder / "d.jpg").write_text("no picture")
    assert main(["predict", str(trained_directory), str(folder), *options]) == 2
    printed = capsys.readouterr()
    told = answers.read_text() if writes else printed.out
    assert [line.split()[:2] for line in told.splitlines()] == [line.split()[:2] for line in expected.splitlines()]
    assert f"2 of 5 files cannot be read and have no answer, {folder / 'b2.png'} first: " in printed.err


def test_where_no_file_can_be_read_nothing_is_written(folder, trained_directory, capsys):
    (folder / "no").mkdir()
    (folder / "no" / "d.jpg").write_text("no picture")
    output = folder / "answers.jsonl"
    assert main(["predict", str(trained_directory), str(folder / "no"), "--output", str(output)]) == 2
    assert "1 of 1 files cannot be read" in capsys.readouterr().err
    assert not output.exists()


def test_an_output_that_is_a_folder_is_called_that(folder, trained_directory, capsys):
    assert main(["predict", str(trained_directory), str(folder), "--output", str(folder)]) == 2
    assert f"but that folder; name a file, {folder / 'answers.jsonl'} for example" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["predict", "push"])
def test_a_model_of_another_kind_is_called_that_before_anything_else(folder, capsys, command):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])
    ResNetForImageClassification(config).save_pretrained(folder / "plain")
    assert main([command, str(folder / "plain"), "user/name" if command == "push" else str(folder)]) == 2
    assert "holds a model of type 'resnet', which takes no label signal; wrap it with" in capsys.readouterr().err
