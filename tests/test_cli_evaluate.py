"""`hf-it3 evaluate` and `hf-it3 corruptions`, called as from a terminal."""

import functools
import json
import os
import signal

import pytest
from PIL import Image
from tqdm.auto import tqdm

from hf_it3.cli import build_parser, main
from hf_it3.corruptions import list_corruptions
from hf_it3.evaluation import runner
from hf_it3.evaluation.runner import Runner


@pytest.fixture
def command(trained_directory):
    """A short evaluation on the bundled digits."""
    return [
        *("evaluate", trained_directory, "--dataset", "digits", "--num_samples", "48", "--batch_size", "24"),
        *("--corruptions", "digits-shift/contrast,digits-shift/blur", "--no_progress", "--no_plots"),
    ]


def test_the_table_has_a_column_per_method_and_a_row_per_corruption(command, capsys):
    assert main([*command, "--methods", "tent,torch-ttt,batch,none"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Accuracy in percent, 48 images in batches of 24, order iid"
    assert lines[1].split()[:4] == ["none", "tent", "torch-ttt", "batch"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[3:6]}
    assert list(rows) == ["clean", "contrast", "blur"]
    assert [cells[1] for cells in rows.values()] == ["n/a"] * 3
    assert all(0 <= float(cells[column]) <= 100 for cells in rows.values() for column in (0, 2, 3))
    assert lines[6].startswith("mean of shifted")


def test_corruptions_are_left_out(command, capsys):
    assert main([*command, "--methods", "none", "--exclude", "digits-shift/blur,calibrated"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[3:5]] == ["clean", "contrast"]


def test_ranges_of_a_split_are_evaluated_apart(command, capsys):
    assert main([*command, "--methods", "none", "--split", "test[:10],test[10:40]"]) == 0
    names = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[3:9]]
    corruptions = ("digits-shift/contrast", "digits-shift/blur")
    assert names == [
        *("test[:10]", *(f"test[:10]: {corruption}" for corruption in corruptions)),
        *("test[10:40]", *(f"test[10:40]: {corruption}" for corruption in corruptions)),
    ]


def test_files_are_written_and_resumed_from(command, capsys, tmp_path):
    command += ["--methods", "batch", "--output_dir", str(tmp_path)]
    assert main(command) == 0
    first = capsys.readouterr().out
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["complete"]
    assert main(command) == 2
    assert "pass resume=True (--resume)" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    assert capsys.readouterr().out == first


@pytest.fixture
def heeded_ctrl_c():
    """A shell's background jobs ignore Ctrl-C, and the tests may be one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded_ctrl_c")
def test_ctrl_c_prints_what_is_finished_and_leaves_valid_results(command, capsys, tmp_path, monkeypatch):
    original = Runner._run_batch

    def run_batch(self, batch, sweep, collector):
        if sweep.number == 1 and batch.number == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, batch, sweep, collector)

    monkeypatch.setattr(Runner, "_run_batch", run_batch)
    assert main([*command, "--methods", "batch", "--output_dir", str(tmp_path)]) == 130
    out = capsys.readouterr().out
    assert "clean" in out
    assert "contrast" not in out
    assert "the evaluation was interrupted; --resume goes on from here" in out
    content = json.loads((tmp_path / "results.json").read_text())
    assert [score["name"] for score in content["conditions"]] == ["clean"]
    assert content["complete"] is False


def test_a_progress_bar_shows_the_running_accuracy(command, capsys, monkeypatch):
    monkeypatch.setattr(runner, "tqdm", functools.partial(tqdm, mininterval=0))
    command.remove("--no_progress")
    assert main([*command, "--methods", "batch", "--corruptions", "none"]) == 0
    captured = capsys.readouterr()
    assert "1/1 clean" in captured.err
    assert "batch=" in captured.err
    assert "1/1" not in captured.out


def test_it_says_how_much_it_will_do_before_it_starts(command, capsys):
    command.remove("--no_progress")
    assert main([*command, "--methods", "none,batch"]) == 0
    assert "Evaluating 3 conditions on 48 images each with none, batch, in batches of 24\n" in capsys.readouterr().err


def test_by_default_it_ends_within_minutes(trained_directory):
    options = build_parser("evaluate").parse_args(["evaluate", trained_directory, "--dataset", "digits"])
    assert (options.num_samples, options.severities, options.methods) == (500, "one", "none,statistics,batch")
    everything = build_parser("evaluate").parse_args(["evaluate", "model", "--dataset", "digits", "--num_samples=all"])
    assert everything.num_samples is None


def test_a_missing_extra_is_told_before_any_image_is_corrupted(command, capsys, monkeypatch):
    monkeypatch.setattr("hf_it3.evaluation.corruptions.frost._paths", lambda: [])
    options = ["--corruptions", "mnist-c/fog,imagenet-c/frost"]
    monkeypatch.setattr(Runner, "run", lambda *arguments: pytest.fail("something was evaluated"))
    assert main([*command, *options]) == 2
    assert "pip install" in capsys.readouterr().err


def test_a_missing_column_is_told_before_the_progress_bar(command, capsys):
    command.remove("--no_progress")
    assert main([*command, "--label_column", "digit"]) == 2
    error = capsys.readouterr().err
    assert "the data set has no label column 'digit'; its columns are image, label" in error
    assert "batch/s" not in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "one"], "--seeds 'one' must be integers"),
        (["--split", "dev"], "no split 'dev'; its splits are train, test"),
        (["--corruptions", "mnist-c/fogg"], "did you mean 'mnist-c/fog'"),
    ],
)
def test_errors_take_one_line(command, options, message, capsys):
    assert main([*command, *options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("hf-it3 evaluate: error: ")
    assert message in error


def test_corruptions_are_listed(capsys):
    assert main(["corruptions", "--suites", "mnist-c,digits-shift"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list_corruptions("mnist-c") + list_corruptions("digits-shift")
    assert lines[0] == "mnist-c/shot_noise (severities 1 to 5)"
    assert main(["corruptions", "--suites", "cifar"]) == 2


def test_corruptions_are_drawn(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert main(["corruptions", "--suites", "digits-shift", "--output", str(tmp_path / "shifts.png")]) == 0
    picture = Image.open(tmp_path / "shifts.png")
    assert picture.width > picture.height > 100
    assert len(picture.getcolors(2**24)) > 50
