"""The README does what it says: its Python runs, its commands exist."""

import re
import shutil
from pathlib import Path

import hub_fixtures
import pytest
from markdown_code import blocks, check_command, command_lines, subcommand_lines
from PIL import Image
from test_architecture import ROOMS

import hf_it3


hub, hub_client = hub_fixtures.hub, hub_fixtures.hub_client

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_python_block_runs_in_order(hub, hub_client, trained_directory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained_directory, "runs/demo")  # the model that the first command makes
    namespace: dict[str, object] = {}
    for block in blocks(README, "python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert len(namespace["answers"]) == 64
    assert {"label", "score", "idempotence"} <= set(namespace["answers"][0][0])


def test_words_are_explained_before_they_are_used():
    before, _, after = README.partition("## Words\n")
    words = re.findall(r"^\| ([a-z ]+) \|", after.partition("\n## ")[0], flags=re.MULTILINE)
    assert {"label signal", "gate", "anchor"} <= set(words)
    assert not [word for word in words[1:] if re.search(rf"\b{word}\b", before)]


def test_every_public_name_is_listed():
    listed = README.partition("## Reference")[2]
    assert [name for name in hf_it3.__all__ if name != "__version__" and f"`{name}`" not in listed] == []


def test_the_rooms_of_the_package_are_those_that_there_are_in_the_order_of_their_imports():
    table = README.partition("The package is divided into rooms:")[2].partition("A room imports")[0]
    cells = re.findall(r"^\| (`.+?`) \|", table, flags=re.MULTILINE)
    named = [name for cell in cells for name in re.findall("`(.+?)`", cell)]
    for name in named:
        path = ROOT / "hf_it3" / name
        assert path.is_dir() if name.endswith("/") else path.is_file(), name
    assert [name.removesuffix(".py").removesuffix("/") for name in named] == ROOMS


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [line.split()[1] for line in command_lines(README) if line.startswith("make ")]
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.parametrize("line", subcommand_lines(README))
def test_every_command_is_one_that_the_parser_takes(line):
    check_command(line)


def test_linked_files_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_pictures_are_readable():
    for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        with Image.open(ROOT / target) as image:
            assert min(image.size) > 200
