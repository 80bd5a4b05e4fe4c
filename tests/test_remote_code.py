"""Code that travels with the weights, used by processes that cannot import hf_it3."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import hub_fixtures
import numpy as np
import pytest
from alike import assert_alike
from transformers import pipeline

import hf_it3
from hf_it3 import IT3ForImageClassification
from hf_it3.it3.configuration_it3 import CLASSIFICATION, TASKS
from hf_it3.it3.remote_code_it3 import auto_map, custom_pipelines, travelling_files


hub, hub_client = hub_fixtures.hub, hub_fixtures.hub_client
packages_without_hf_it3 = hub_fixtures.packages_without_hf_it3

# torch, transformers and what transformers itself cannot do without.
ALLOWED = {"torch", "transformers", "numpy", "PIL", "safetensors"}

IMAGES = [np.random.default_rng(seed).integers(0, 255, (28, 28), dtype=np.uint8) for seed in range(4)]
HEAD = """
import sys

sys.path.append(sys.argv[1])
try:
    import hf_it3
except ImportError:
    pass
else:
    sys.exit("hf_it3 is here: this process proves nothing")

import json
import numpy as np
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

images = [np.random.default_rng(seed).integers(0, 255, (28, 28), dtype=np.uint8) for seed in range(4)]


def answers(name, **kwargs):
    classifier = pipeline("it3-image-classification", model=name, **kwargs)
    return [classifier(images, top_k=None, gate=None), classifier(images, top_k=None, adapt=False)], classifier
"""

TRUSTING = """
name, again = sys.argv[2:]
found, classifier = answers(name, trust_remote_code=True)
model = AutoModelForImageClassification.from_pretrained(name, trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=True)
model.push_to_hub(again)
processor.push_to_hub(again)
pushed, _ = answers(again, trust_remote_code=True)
try:
    answers(name, trust_remote_code=False)
except ValueError as error:
    refusal = str(error)
classes = [type(thing).__module__ for thing in (classifier, model, model.config, processor)]
print(json.dumps({"found": found, "pushed": pushed, "refusal": refusal, "classes": classes}))
"""


@pytest.fixture
def answer(trained_directory):
    """The answers of the trained model to `IMAGES`, adapted and plain, and its pipeline."""
    classifier = pipeline("it3-image-classification", model=trained_directory)
    return [classifier(IMAGES, top_k=None, gate=None), classifier(IMAGES, top_k=None, adapt=False)], classifier


def test_without_the_package_code_from_the_repo_does_the_same(
    hub, hub_client, answer, packages_without_hf_it3, tmp_path
):
    expected, classifier = answer
    name, again = hub.name("with-code"), hub.name("pushed-again")
    classifier.push_to_hub(name, include_code=True)
    command = [sys.executable, "-S", "-c", HEAD + TRUSTING, str(packages_without_hf_it3), name, again]
    environment = {name: value for name, value in hub.env().items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert_alike(result["found"], expected)
    assert all(module.startswith("transformers_modules.") for module in result["classes"])
    assert "trust_remote_code=True" in result["refusal"]

    # What was pushed from there loads there, and stands on its own: it refers to no code but its own.
    assert_alike(result["pushed"], expected)
    config = json.loads(hub.read(again, "config.json"))
    assert (config["auto_map"], config["custom_pipelines"]) == (
        auto_map(CLASSIFICATION),
        custom_pipelines(CLASSIFICATION),
    )
    # And here, with the package imported, neither asks for trust.
    for repo_id in (name, again):
        classifier = pipeline("it3-image-classification", model=repo_id)
        assert type(classifier.model) is IT3ForImageClassification
        ours = [classifier(IMAGES, top_k=None, gate=None), classifier(IMAGES, top_k=None, adapt=False)]
        assert_alike(ours, expected)


@pytest.fixture(params=travelling_files(), ids=lambda path: path.stem)
def module(request):
    return request.param


def test_travelling_modules_import_only_each_other_and_what_transformers_needs(module):
    siblings = {path.stem for path in travelling_files()}
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, f"{module.name} imports from a parent package"
            assert node.module in siblings, f"{module.name} imports {node.module}, which does not travel"
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            roots = {name.split(".")[0] for name in names}
            assert roots <= ALLOWED | sys.stdlib_module_names, f"{module.name} imports {roots}"


@pytest.mark.parametrize("task", TASKS)
def test_every_travelling_module_is_found_by_its_imports(task):
    from transformers.dynamic_module_utils import get_relative_import_files

    package = Path(hf_it3.__file__).parent / "it3"
    for reference in auto_map(task).values():
        entry = package / f"{reference.split('.')[0]}.py"
        found = {Path(file).name for file in get_relative_import_files(entry)} | {entry.name}
        if "modeling" in reference:
            assert found == {path.name for path in travelling_files()}
        assert all((package / name).is_file() for name in found)


def test_a_directory_with_code_stays_loadable_here_without_trust(model, tmp_path):
    model.save_pretrained(tmp_path, include_code=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"] == auto_map(CLASSIFICATION)
    loaded = IT3ForImageClassification.from_pretrained(tmp_path)
    loaded.save_pretrained(tmp_path / "plain")
    plain = (tmp_path / "plain" / "config.json").read_text()
    assert "auto_map" not in plain
    assert "custom_pipelines" not in plain
    assert not list((tmp_path / "plain").glob("*.py"))


def test_only_the_main_process_writes_code(model, tmp_path):
    model.save_pretrained(tmp_path, False, include_code=True)
    assert list(tmp_path.iterdir()) == []
