"""Every example runs in a small setting, prints what it promises, and says what is wrong in one line."""

import ast
import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import hub_fixtures
import pytest
import torch
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification, pipeline

from hf_it3 import IT3ForImageClassification, IT3ImageProcessor, IT3Trainer


hub, hub_client = hub_fixtures.hub, hub_fixtures.hub_client

EXAMPLES = Path(__file__).parent.parent / "examples"
OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1"}
SCRIPTS = sorted(path for path in EXAMPLES.glob("*.py"))


def run(script, *arguments, cwd, check=True, environment=OFFLINE):
    """Runs a script in a directory of the test's own; returns what it printed."""
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    process = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, env=environment)
    if check:
        assert process.returncode == 0, process.stderr[-2000:]
    return process


@pytest.fixture
def run_here(hub_client, monkeypatch, tmp_path, capsys):
    """Runs a script in this process, with the loopback Hub, for another takes seconds to start; what it printed."""

    def run_script(script, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capsys.readouterr().out

    return run_script


def percentages(line):
    return [float(value) for value in re.findall(r"([\d.]+)%", line)]


def line_of(output, start):
    return next(line for line in output.splitlines() if line.strip().startswith(start))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_each_example_declares_its_dependencies_and_says_what_it_shows(path):
    text = path.read_text(encoding="utf-8")
    header = re.match(r"# /// script\n((?:#.*\n)+?)# ///\n", text)
    assert header, "no PEP 723 header"
    header = tomllib.loads(re.sub("^# ?", "", header[1], flags=re.MULTILINE))
    assert header["requires-python"]
    assert any(name.startswith("hf-it3") for name in header["dependencies"])
    source = path.parent / header["tool"]["uv"]["sources"]["hf-it3"]["path"]
    assert (source / "pyproject.toml").is_file()
    docstring = ast.get_docstring(ast.parse(text))
    assert f"examples/{path.name}" in docstring
    index = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    entry = next(line for line in index.splitlines() if f"]({path.name})" in line)
    assert re.search(r"second|minute|depends", entry), "the index does not say how long it takes"


def test_mnist_tells_the_whole_story(run_here, tmp_path):
    output = run_here("mnist.py", "--num_epochs", 2, "--max_train_images", 600, "--max_test_images", 250)
    assert "600 training and 250 test images" in output
    clean, noisy, floats = (percentages(line_of(output, name)) for name in ("clean", "noisy", "float noise"))
    assert len(clean) == len(noisy) == len(floats) == 2
    assert clean[0] > noisy[0]
    assert {path.name for path in (tmp_path / "runs/mnist").glob("*.png")} == {"digits.png", "accuracy.png"}


def test_the_stream_adapts_and_its_model_is_kept_and_pushed(hub, run_here, trained_directory, tmp_path):
    pushed = hub.name("my-camera")
    output = run_here("stream.py", "--model", trained_directory, "--push", pushed)
    parts = [percentages(line) for line in output.splitlines() if line.strip().startswith("+")]
    assert len(parts) == 4
    assert parts[-1][1] > parts[-1][0]
    assert int(re.search(r"took (\d+) steps", output)[1]) > 0
    assert percentages(line_of(output, "saved it in"))[0] > parts[-1][0]
    weights = (tmp_path / "runs/stream/adapted/model.safetensors").read_bytes()
    assert hub.read(pushed, "model.safetensors") == weights
    assert "preprocessor_config.json" in hub.files(pushed)


def test_a_stream_that_began_on_the_hub_is_pushed_there_as_what_changed(hub, run_here, trained_directory, tmp_path):
    base, pushed = hub.name("digits"), hub.name("my-camera")
    pipeline("it3-image-classification", model=trained_directory).push_to_hub(base)
    assert f"pushed to {pushed}" in run_here("stream.py", "--model", base, "--push", pushed)
    assert "delta.safetensors" in hub.files(pushed)
    assert "model.safetensors" not in hub.files(pushed)
    assert "digits that grow brighter" in hub.read(pushed, "README.md").decode()
    kept, loaded = (
        IT3ForImageClassification.from_pretrained(name).state_dict()
        for name in (tmp_path / "runs/stream/adapted", pushed)
    )
    assert kept.keys() == loaded.keys()
    assert all(torch.equal(value, loaded[name]) for name, value in kept.items())
    assert pipeline("it3-image-classification", model=pushed)(Image.new("L", (8, 8)))


@pytest.mark.slow
def test_processes_share_a_folder_without_losing_or_repeating_images(trained_directory, digits, tmp_path):
    for position, row in enumerate(digits["test"].select(range(30))):
        path = tmp_path / "images" / str(row["label"]) / f"{position}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        row["image"].save(path)
    run(
        *("batch_inference.py", "--model", trained_directory, "--images", "images", "--processes", 2),
        *("--batch_size", 8, "--output", "answers.jsonl"),
        cwd=tmp_path,
    )
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    written = sorted(path.relative_to(tmp_path / "images") for path in tmp_path.glob("images/*/*.png"))
    assert sorted(Path(answer["file"]) for answer in answers) == written
    assert set(answers[0]) >= {"file", "label", "score", "idempotence", "adapted", "averaged", "feature_shift"}


@pytest.mark.slow
def test_rejecting_uncertain_predictions_lowers_the_error_rate(trained_directory, tmp_path):
    output = run("uncertainty.py", "--model", trained_directory, "--max_images", 200, cwd=tmp_path).stdout
    for line in output.splitlines():
        if line.startswith("idempotence distance"):
            half, *_, everything = percentages(line)
            assert half < everything
    assert (tmp_path / "runs/uncertainty/risk_coverage.png").is_file()


NAMES = ["nought", "one", "two"]


@pytest.fixture
def few_digits(tmp_path, digits):
    """A plain classifier of three digits and a folder of their images, `resnet` and `images`; the rows."""
    resnet = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], id2label=dict(enumerate(NAMES)))
    ResNetForImageClassification(resnet).save_pretrained(tmp_path / "resnet")
    IT3ImageProcessor(num_channels=3, size={"height": 16, "width": 16}).save_pretrained(tmp_path / "resnet")
    few = digits["test"].select(range(120)).filter(lambda row: row["label"] < 3)
    for position, row in enumerate(few):
        path = tmp_path / "images" / ("train", "test")[position % 2] / NAMES[row["label"]] / f"{position}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        row["image"].save(path)
    return few


def test_a_pretrained_classifier_learns_the_label_signal_and_keeps_its_classes(run_here, tmp_path, few_digits):
    command = ("finetune_backbone.py", "--backbone", "resnet", "--dataset", "images", "--batch_size", 8)
    output = run_here(*command, "--max_eval_images", 15)
    assert "the label signal enters behind resnet.embedder" in output
    assert re.search(r"before: accuracy 0\.\d+", output)
    assert re.search(r"saved to .*after: accuracy 0\.\d+.* of 15 training images", output, re.DOTALL)
    model = IT3ForImageClassification.from_pretrained(tmp_path / "runs/finetuned")
    assert list(model.config.id2label.values()) == NAMES
    assert model.config.reference_distance["num_images"] == 15
    kernel = "resnet.embedder.embedder.convolution.weight"
    pretrained = ResNetForImageClassification.from_pretrained(tmp_path / "resnet")
    assert torch.equal(model.backbone.state_dict()[kernel], pretrained.state_dict()[kernel])
    classifier = pipeline("it3-image-classification", model=str(tmp_path / "runs/finetuned"))
    assert classifier(few_digits[0]["image"], top_k=1)[0]["label"] in NAMES


@pytest.mark.usefixtures("few_digits")
def test_what_was_fine_tuned_is_saved_before_anything_is_measured_on_it(run_here, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(IT3Trainer, "measure_reference_distance", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_here("finetune_backbone.py", "--backbone", "resnet", "--dataset", "images", "--max_steps", 1)
    assert IT3ForImageClassification.from_pretrained(tmp_path / "runs/finetuned").config.id2label[2] == "two"


def test_a_model_trained_by_torch_ttt_adapts_in_both_with_the_same_answers(run_here, tmp_path):
    small = ("--num_epochs", 1, "--num_samples", 64, "--batch_size", 32)
    output = run_here("from_torch_ttt.py", *small, "--seeds", "1,2", "--output", "table.json")
    # Means and ranges of three methods on models of both trainings, under nine conditions and over seven of them.
    rows = [line.split(" | ") for line in output.splitlines() if line.startswith("| ")]
    assert [len(row) for row in rows] == [7] * 11
    assert all(re.fullmatch(r"[\d.]+ \([\d.]+ to [\d.]+\)", cell) for row in rows[1:] for cell in row[1:-1])
    table = json.loads((tmp_path / "table.json").read_text())
    printed = [[cell.strip("| ") for cell in row] for row in rows]
    assert [table["columns"], *table["rows"]] == printed
    assert table["caption"].startswith("Accuracy in percent on 64 test images in batches of 32")
    difference = re.search(r"torch-ttt and hf_it3: (\d\.\de[+-]\d+)", output)[1]
    assert float(difference) < 1e-4


@pytest.fixture
def complaint(run_here):
    """Runs a script that cannot work; what it ends with."""

    def run_and_end(script, *arguments):
        with pytest.raises(SystemExit) as ending:
            run_here(script, *arguments)
        # Python prints a text to stderr, alone, and exits with 1.
        assert isinstance(ending.value.code, str)
        assert len(ending.value.code.splitlines()) == 1
        return ending.value.code

    return run_and_end


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("stream.py", "--model", "user/nothing"), "stream.py: user/nothing is not a"),
        (("mnist.py", "--dataset", "./nowhere"), "mnist.py: cannot load './nowhere'"),
        (("batch_inference.py", "--images", "."), "batch_inference.py: give both --model and --images, or neither"),
        (("uncertainty.py", "--model", "user/nothing"), "uncertainty.py: user/nothing is not a"),
        (
            ("finetune_backbone.py", "--backbone", "user/nothing", "--dataset", "digits"),
            "finetune_backbone.py: user/nothing is not a",
        ),
        (("serve.py", "--model", "digits=user/nothing"), "serve.py: user/nothing is not a"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(complaint, arguments, message):
    assert complaint(*arguments).startswith(message)


def test_a_push_that_is_refused_is_said_in_one_line(complaint, hub, trained_directory, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.bad_token)
    message = complaint("stream.py", "--model", trained_directory, "--parts", 1, "--push", hub.name("my-camera"))
    assert message.startswith("stream.py: ")
    assert "Invalid credentials" in message


def test_without_torch_ttt_the_migration_example_says_what_to_install(complaint, monkeypatch):
    for name in ["torch_ttt", *(name for name in sys.modules if name.startswith("torch_ttt."))]:
        monkeypatch.setitem(sys.modules, name, None)
    assert "this example needs: pip install torch-ttt==0.0.2 einops" in complaint("from_torch_ttt.py")
