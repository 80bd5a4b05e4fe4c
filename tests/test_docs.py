"""The documentation builds without a broken link, names what exists, and its code runs."""

import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from markdown_code import blocks, check_command, subcommand_lines

import hf_it3
from hf_it3.cli import COMMANDS


DOCS = Path(__file__).parent.parent / "docs"
PAGES = {
    str(path.relative_to(DOCS / "pages")): path.read_text(encoding="utf-8")
    for path in sorted((DOCS / "pages").rglob("*.md"))
}


def test_it_builds_with_every_link_leading_somewhere(tmp_path):
    pytest.importorskip("mkdocs", reason="the documentation needs the extra 'docs'")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict"]
    command += ["--config-file", str(DOCS / "mkdocs.yml"), "--site-dir", str(tmp_path / "site")]
    process = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, timeout=300
    )
    assert process.returncode == 0, process.stderr[-3000:]
    site = tmp_path / "site" / "reference"
    pages = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.html"))
    anchors = set(re.findall(r'id="(hf_it3[\w.]*)"', pages))
    described = {f"hf_it3.{name}" for name in hf_it3.__all__ if name != "__version__"}
    described |= {"hf_it3.TestTimeAdapter.adapted_model", "hf_it3.corruptions.corrupt", "hf_it3.data.load_digits"}
    described |= {"hf_it3.evaluation.calibration.calibrate.calibrate", "hf_it3.evaluation.evaluate_robustness"}
    assert described - anchors == set()
    assert "<code>num_steps</code>" in pages, "the arguments are missing"


LISTING = "reference/cli.md"  # names commands without their arguments


def test_every_command_is_listed():
    assert set(re.findall(r"^\| `hf-it3 (\w+)`", PAGES[LISTING], flags=re.MULTILINE)) == set(COMMANDS)


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if blocks(text, "python")])
def test_the_code_of_a_page_runs_from_top_to_bottom(page, trained_directory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained_directory, "runs/demo")  # the model that pages tell their readers to make
    # A module, as a reader's script or notebook is one, so that classes in it can be found again.
    script = types.ModuleType("readers_script")
    monkeypatch.setitem(sys.modules, script.__name__, script)
    for block in blocks(PAGES[page], "python"):
        exec(compile(block, page, "exec"), vars(script))


COMMAND_LINES = [(page, line) for page, text in PAGES.items() if page != LISTING for line in subcommand_lines(text)]


@pytest.mark.parametrize(("page", "line"), COMMAND_LINES)
def test_every_command_is_one_that_the_parser_takes(page, line):
    check_command(line)


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("guides/")])
def test_every_guide_can_be_found(page):
    navigation = (DOCS / "mkdocs.yml").read_text(encoding="utf-8")
    assert page in navigation
