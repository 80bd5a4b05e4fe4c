"""What surrounds the package agrees with it: metadata, type information, workflow, citation, changelog."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
import yaml

import hf_it3


ROOT = Path(__file__).parent.parent
SOURCES = (".py", ".md", ".ipynb", ".txt", ".yml")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))


def requirements() -> list[str]:
    extras = PROJECT["project"]["optional-dependencies"]
    return [*PROJECT["project"]["dependencies"], *(name for extra in extras.values() for name in extra)]


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "hf_it3" / "py.typed").is_file()
    assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"]["hf_it3"]


def test_every_file_of_the_package_that_is_no_module_is_shipped():
    package_data = PROJECT["tool"]["setuptools"]["package-data"]
    shipped = {
        path
        for package, patterns in package_data.items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    files = {path for path in (ROOT / "hf_it3").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert files == shipped


def test_a_source_distribution_holds_what_the_readme_links_to_and_the_makefile_needs():
    manifest = (ROOT / "MANIFEST.in").read_text(encoding="utf-8")
    for name in (".github", "docs", "examples", "model_cards", "tests"):
        assert re.search(rf"^graft {name}$", manifest, flags=re.MULTILINE)
    assert "include Makefile constraints.txt" in manifest


def test_a_source_distribution_is_built_with_tests_docs_examples_and_cards(tmp_path):
    pytest.importorskip("setuptools")
    left_out = shutil.ignore_patterns(".git", ".venv*", "runs", "build", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, tmp_path / "checkout", ignore=left_out)
    code = "from setuptools import build_meta; build_meta.build_sdist('..')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "checkout", capture_output=True, check=True)
    with tarfile.open(tmp_path / f"hf_it3-{hf_it3.__version__}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("hf_it3", "docs", "examples", "model_cards", "tests"):
        files = [path for path in (ROOT / name).rglob("*") if path.is_file() and path.suffix != ".pyc"]
        assert {path.relative_to(ROOT).as_posix() for path in files} <= names, name
    assert {"constraints.txt", "CITATION.cff", "Makefile", "README.md", "LICENSE"} <= names


def test_every_extra_that_is_named_exists():
    extras = set(PROJECT["project"]["optional-dependencies"])
    folders = ("hf_it3", "docs", "examples", "model_cards", "tests", ".github")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in SOURCES]
    named = set()
    for path in (ROOT / "README.md", ROOT / "Makefile", ROOT / "pyproject.toml", *paths):
        text = path.read_text(encoding="utf-8")
        for lists in re.findall(r"(?:hf-it3|\"\.)\[([a-z,]+)\]", text):
            named |= set(lists.split(","))
        named |= set(re.findall(r"\bextra `(\w+)`", text))
    assert {"app", "demo", "frost"} <= named <= extras


def test_a_folder_named_like_the_package_does_not_hide_it(tmp_path):
    """As beside a checkout: Python takes a folder without `__init__.py` only if it finds nothing better later."""
    (tmp_path / "hf_it3").mkdir()
    code = "import importlib.util; print(importlib.util.find_spec('hf_it3').origin)"
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == hf_it3.__file__


def test_every_requirement_has_a_lower_bound():
    for requirement in requirements():
        assert re.fullmatch(r"hf-it3\[[a-z,]+\]|[A-Za-z0-9_-]+(\[[a-z]+\])?[>=]=[\d.]+", requirement), requirement


def test_constraints_pin_every_requirement_within_its_bounds():
    pins = dict(
        line.replace("_", "-").split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    )
    for requirement in requirements():
        name, bound = re.split(r"[>=]=|\[", requirement)[0], re.search(r">=([\d.]+)", requirement)
        if name == "hf-it3":
            continue
        assert name in pins, name
        if bound:
            assert version(pins[name]) >= version(bound[1]), name


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def test_the_workflow_runs_targets_that_exist_on_the_versions_of_python_that_are_promised():
    steps = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]
    targets = {line.split()[1] for step in steps for line in step.get("run", "").splitlines()}
    assert {"check", "docs", "test", "test-min"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", MAKEFILE, flags=re.MULTILINE), target
    tested = WORKFLOW["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    promised = [
        line.rpartition(" ")[2]
        for line in PROJECT["project"]["classifiers"]
        if re.search(r":: Python :: 3\.\d+$", line)
    ]
    assert tested == promised
    assert PROJECT["project"]["requires-python"] == f">={tested[0]}"


def test_citation_and_changelog_know_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == hf_it3.__version__
    assert citation["license"] == PROJECT["project"]["license"]
    changelog = (ROOT / "docs" / "pages" / "changelog.md").read_text(encoding="utf-8")
    latest = re.search(r"^## ([\d.]+)", changelog, flags=re.MULTILINE)
    assert latest
    assert latest[1] == hf_it3.__version__


@pytest.mark.parametrize("path", [".github/CONTRIBUTING.md"])
def test_linked_files_exist(path):
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / path).read_text(encoding="utf-8")):
        assert ((ROOT / path).parent / target).exists(), target


def test_contributors_are_told_commands_that_exist():
    text = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    targets = re.findall(r"(?:^|`)make ([a-z-]+)", text, flags=re.MULTILINE)
    assert len(targets) > 3
    for target in targets:
        assert re.search(rf"^{target}:", MAKEFILE, flags=re.MULTILINE), target
