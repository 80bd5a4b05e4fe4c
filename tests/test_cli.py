"""The `hf-it3` command: overview, versions, and errors in one line."""

import os
import subprocess
import sys
from types import SimpleNamespace

import httpx
import pytest

from hf_it3 import cli
from hf_it3.cli.options import AVERAGE_ANSWERS, SCOPES
from hf_it3.it3 import adaptation_config_it3
from hf_it3.version import __version__


class Fails:
    """A subcommand that raises."""

    def __init__(self, error):
        self.error = error

    def add_arguments(self, parser):
        parser.add_argument("--steps", type=int)

    def run(self, arguments):
        if self.error is not None:
            raise self.error


@pytest.fixture
def failing(monkeypatch):
    """Makes `hf-it3 env` raise the given error."""

    def install(error):
        module = Fails(error)
        module.__doc__ = "Fails."
        monkeypatch.setattr(cli, "importlib", SimpleNamespace(import_module=lambda *_: module))

    return install


def test_the_overview_lists_every_subcommand(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    unwrapped = "".join(text.split())  # argparse breaks lines at hyphens, too
    for name, summary in cli.COMMANDS.items():
        assert name in text
        assert "".join(summary.split(",")[0].split()) in unwrapped


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_subcommand_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0
    assert f"usage: hf-it3 {name}" in capsys.readouterr().out


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"hf-it3 {__version__}\n"


def test_env_prints_the_versions_that_matter(capsys):
    assert cli.main(["env"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"hf-it3", "torch", "transformers", "python", "datasets"} <= {line.partition(":")[0] for line in lines}
    assert f"hf-it3: {__version__}" in lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["trian"], "invalid choice: 'trian'; did you mean train?"),
        (["xyz"], "invalid choice: 'xyz'"),
        (["env", "--verbose"], "unrecognized arguments: --verbose"),
        (["train", "--split", "test"], "unrecognized arguments: --split test; did you mean --"),
        (["predict", "x", "y", "--topk", "2"], "unrecognized arguments: --topk 2; did you mean --top_k?"),
        (["--nonsense", "env"], "unrecognized arguments: --nonsense"),
    ],
)
def test_unknown_commands_and_options_end_with_status_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    "error", [ValueError("bad value"), OSError("no such file"), ImportError("missing"), TypeError("wrong")]
)
def test_errors_of_the_users_making_are_one_line_and_status_2(failing, error, capsys):
    failing(error)
    assert cli.main(["env"]) == 2
    assert capsys.readouterr().err == f"hf-it3 env: error: {error}\n"


def test_an_error_of_several_lines_becomes_one(failing, capsys):
    failing(OSError("x is not a model.\n\nIf it is private, log in:\n  hf auth login"))
    assert cli.main(["env"]) == 2
    assert capsys.readouterr().err == (
        "hf-it3 env: error: x is not a model. If it is private, log in: hf auth login\n"
    )


def test_with_debug_the_whole_traceback_is_shown(failing):
    failing(ValueError("bad value"))
    with pytest.raises(ValueError, match="bad value"):
        cli.main(["--debug", "env"])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ZeroDivisionError(), "ZeroDivisionError"),
        (KeyError("logits"), "KeyError: 'logits'"),
        (RuntimeError("wandb is not\ninstalled"), "RuntimeError: wandb is not installed"),
        (httpx.ConnectError("Name or service not known"), "ConnectError: Name or service not known"),
    ],
)
def test_an_unexpected_error_is_told_from_a_mistake(failing, error, message, capsys):
    failing(error)
    assert cli.main(["env"]) == 2
    expected = f"hf-it3 env: error: {message} (hf-it3 --debug shows the whole traceback)\n"
    assert capsys.readouterr().err == expected


def test_a_bug_is_not_hidden(failing):
    failing(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        cli.main(["--debug", "env"])


def test_an_interrupt_ends_with_status_130(failing, capsys):
    failing(KeyboardInterrupt())
    assert cli.main(["env"]) == 130
    assert capsys.readouterr().err == "hf-it3: interrupted\n"


def test_an_option_may_have_the_name_of_a_command(failing):
    failing(None)
    assert cli.main(["env", "--steps", "3"]) == 0


@pytest.mark.slow
def test_a_reader_that_has_enough_is_no_error():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        process = subprocess.run(
            [sys.executable, "-m", "hf_it3.cli", "corruptions"], stdout=closed, stderr=subprocess.PIPE, text=True
        )
    assert (process.returncode, process.stderr) == (141, "")


HELP = """
import sys
sys.argv = ["/usr/bin/hf-it3", *{arguments}]
from hf_it3.cli import main
try:
    main()
except SystemExit as end:
    assert end.code == 0
slow = {{"torch", "transformers", "datasets", "huggingface_hub", "numpy", "PIL"}} & set(sys.modules)
assert not slow, slow
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["predict", "-h"], *([name, "--help"] for name in cli.COMMANDS)]
)
def test_help_waits_for_no_other_package(arguments):
    subprocess.run([sys.executable, "-c", HELP.format(arguments=arguments)], check=True, capture_output=True)


def test_help_of_the_module_waits_for_no_other_package_either():
    command = [sys.executable, "-X", "importtime", "-m", "hf_it3.cli", "predict", "--help"]
    process = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "usage: hf-it3 predict" in process.stdout
    imported = {line.rpartition("|")[2].strip() for line in process.stderr.splitlines()}
    assert "hf_it3.version" in imported
    assert not {"torch", "transformers", "datasets", "numpy"} & imported


def test_options_may_be_written_with_dashes(failing, monkeypatch):
    given = []
    failing(None)
    monkeypatch.setattr(Fails, "add_arguments", lambda self, parser: parser.add_argument("--num_steps", type=int))
    monkeypatch.setattr(Fails, "run", lambda self, arguments: given.append(arguments.num_steps))
    for options in (["--num-steps", "3"], ["--num-steps=-4"], ["--num_steps", "5"]):
        assert cli.main(["env", *options]) == 0
    assert given == [3, -4, 5]


TAKES = {
    "dataset": {"demo", "evaluate", "calibrate", "train", "app"},
    "config_name": {"evaluate", "calibrate", "train", "adapt", "app"},
    "no_progress": {"evaluate", "calibrate", "predict", "adapt"},
    "revision": {"evaluate", "calibrate", "train", "inspect", "predict", "adapt", "push", "app"},
}


def options_of(name):
    (subparsers,) = [action for action in cli.build_parser(name)._actions if action.dest == "command"]
    return {action.dest for action in subparsers.choices[name]._actions}


def test_one_thing_has_one_name_in_all_commands():
    options = {name: options_of(name) for name in cli.COMMANDS}
    for option, commands in TAKES.items():
        assert {name for name in options if option in options[name]} == commands, option
    for retired in ("dataset_config", "dataset_name", "model_revision", "scopes", "max_train_images"):
        assert not [name for name in options if retired in options[name]], retired


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["predict", "./no/such/model", "x.png"], "model './no/such/model' does not exist"),
        (["evaluate", "runs/no/model", "--dataset", "digits"], "model 'runs/no/model' does not exist"),
        (["evaluate", "user/model", "--dataset", "/no/data"], "dataset '/no/data' does not exist"),
        (["train", "--backbone", "~/no/model"], "backbone '~/no/model' does not exist"),
        (["demo", "--dataset", "no/such/folder"], "dataset 'no/such/folder' does not exist"),
    ],
)
def test_a_local_path_that_is_missing_is_called_that(arguments, told, capsys):
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err == (
        f"hf-it3 {arguments[0]}: error: {told}; give a path that does, or a name on the Hub\n"
    )


@pytest.fixture
def offline(monkeypatch):
    """As with `HF_HUB_OFFLINE=1` from the start; else the client waits for a network that may not be there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["adapt", "MODEL", "./no.png", "--output_dir", "x"], "image file or data set './no.png' does not exist"),
        (["adapt", "MODEL", "no.png", "x", "--output_dir", "x"], "no.png does not exist; give image files and"),
        (["predict", "MODEL", "./no.png"], "no.png does not exist; give image files"),
        (["evaluate", "nowhere", "--dataset", "digits"], "there is no folder nowhere, and as a name on the Hub: "),
        (["inspect", "nowhere"], "there is no folder nowhere, and as a name on the Hub: "),
        (["train", "--backbone", "nowhere"], "there is no folder nowhere, and as a name on the Hub: "),
        (["evaluate", "MODEL", "--dataset", "digits", "--output_dir", __file__], "is a file; name a folder"),
        (["adapt", "MODEL", "digits", "--push", "not/a/name"], "Repo id must be in the form"),
        (
            ["evaluate", "MODEL", "--dataset", "digits", "--config_name", "a"],
            "digits has no configurations, got config",
        ),
        (["adapt", "MODEL", "digits", "--output_dir", "x", "--delta"], "--delta refers to the model by its name on"),
        (["train", "--do_predict"], "hf-it3 predict MODEL IMAGES does it"),
        (["predict", "MODEL", __file__, "--no_adapt", "--scope", "image"], "leave --scope, --no_gate and"),
        (["predict", "MODEL", __file__, "--no_adapt", "--average_answers", "always"], "leave --scope, --no_gate and"),
        (["train", "--labels", "a,b"], "--labels names 2 classes, and the data set has 10"),
        (["train", "--max_train_samples", "0"], "max_train_samples must be at least 1, got 0"),
        (["train", "--task", "segmentation", "--dataset", "digits"], "where a map of classes is needed"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_done(
    arguments, told, trained_directory, tmp_path, monkeypatch, capsys, offline
):
    monkeypatch.chdir(tmp_path)
    assert cli.main([trained_directory if word == "MODEL" else word for word in arguments]) == 2
    error = capsys.readouterr().err
    assert told in error.splitlines()[-1]
    assert "it/s" not in error.partition("Loading weights")[0]
    assert "Adapting" not in error


def test_scopes_are_those_of_the_adaptation_config():
    assert SCOPES == adaptation_config_it3.SCOPES
    assert AVERAGE_ANSWERS == adaptation_config_it3.AVERAGE_ANSWERS


def test_a_data_set_that_is_nowhere_is_said_to_be_no_folder_either(capsys, offline):
    assert cli.main(["demo", "--dataset", "runs/data"]) == 2
    assert "there is no file or folder runs/data, and as a name on the Hub: " in capsys.readouterr().err
