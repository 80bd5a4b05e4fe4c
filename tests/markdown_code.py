"""Code in Markdown: the blocks of a page and the commands that it names."""

import re
import shlex

from hf_it3.cli import COMMANDS, build_parser


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def command_lines(text: str) -> list[str]:
    """The lines of shell blocks, without comments, and the `hf-it3` commands within sentences."""
    lines = [
        line.split("#")[0].strip()
        for block in blocks(text, "bash")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    inline = re.findall(r"`(hf-it3 [^`]+)`", text)
    return [line for line in [*lines, *inline] if line]


def subcommand_lines(text: str) -> list[str]:
    """Of these, those that call a subcommand of `hf-it3`."""
    return [line for line in command_lines(text) if re.search(r"hf-it3 [a-z]|hf_it3\.cli ", line)]


def check_command(line: str) -> None:
    """Fails unless the parser takes the command; `...` stands for what its reader fills in."""
    if "..." in line:
        line = line.replace("--dataset ...", "--dataset digits").replace(" ...", " --output_dir x")
    words = shlex.split(line)
    start = next(i for i, word in enumerate(words) if word in ("hf-it3", "hf_it3.cli"))
    command, *rest = words[start + 1 :]
    assert command in COMMANDS
    build_parser(command).parse_args([command, *rest])
