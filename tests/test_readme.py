"""The README does what it says: its Python runs, its commands exist."""

import re
import shlex
from pathlib import Path

import hub_fixtures
import pytest
from PIL import Image

from hf_it3.cli import COMMANDS, build_parser


hub, hub_client = hub_fixtures.hub, hub_fixtures.hub_client

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def command_lines() -> list[str]:
    lines = [
        line.split("#")[0].strip() for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()
    ]
    inline = re.findall(r"`(hf-it3 [^`]+)`", README)
    return [line for line in [*lines, *inline] if line]


def test_every_python_block_runs(hub, hub_client, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    first, *others = blocks("python")
    for block in [*others, first]:  # the first screen uses the model that the last block pushes
        exec(compile(block, "README.md", "exec"), namespace)
    assert len(namespace["answers"]) == 64
    assert {"label", "score", "idempotence"} <= set(namespace["answers"][0][0])


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [line.split()[1] for line in command_lines() if line.startswith("make ")]
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.parametrize("line", [line for line in command_lines() if "hf-it3 " in line or "hf_it3.cli " in line])
def test_every_command_is_one_that_the_parser_takes(line):
    if "..." in line:
        line = line.replace("--dataset ...", "--dataset digits").replace(" ...", " --output_dir x")
    words = shlex.split(line)
    start = next(i for i, word in enumerate(words) if word in ("hf-it3", "hf_it3.cli"))
    command, *rest = words[start + 1 :]
    assert command in COMMANDS
    build_parser(command).parse_args([command, *rest])


def test_linked_files_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_pictures_are_readable():
    for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        with Image.open(ROOT / target) as image:
            assert min(image.size) > 200
