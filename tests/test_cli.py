"""The `hf-it3` command: overview, versions, and errors in one line."""

import os
import subprocess
import sys

import httpx
import pytest

from hf_it3 import cli
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
        monkeypatch.setattr(cli.importlib, "import_module", lambda *_: module)

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
        (["trian"], "invalid choice: 'trian'"),
        (["env", "--verbose"], "unrecognized arguments: --verbose"),
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


def test_a_reader_that_has_enough_is_no_error():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        process = subprocess.run(
            [sys.executable, "-m", "hf_it3.cli", "corruptions"], stdout=closed, stderr=subprocess.PIPE, text=True
        )
    assert (process.returncode, process.stderr) == (141, "")
