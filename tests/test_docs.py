"""The documentation builds without a broken link, names what exists, and its code runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hf_it3
from hf_it3.cli import COMMANDS


DOCS = Path(__file__).parent.parent / "docs"


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


def test_every_command_is_listed():
    page = (DOCS / "pages" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `hf-it3 (\w+)`", page, flags=re.MULTILINE)) == set(COMMANDS)
