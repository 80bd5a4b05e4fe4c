"""The documentation builds without a broken link, names what exists, and its code runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
    page = (tmp_path / "site" / "reference" / "adaptation" / "index.html").read_text(encoding="utf-8")
    assert 'id="hf_it3.TestTimeAdapter.adapted_model"' in page
    assert "the images of one batch" in page, "the descriptions of the arguments are missing"


def test_every_command_is_listed():
    page = (DOCS / "pages" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `hf-it3 (\w+)`", page, flags=re.MULTILINE)) == set(COMMANDS)
