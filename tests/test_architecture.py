"""Imports go one way, and what travels with the weights imports nothing that may be missing where they arrive."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import hf_it3


ROOT = Path(hf_it3.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}
TRAVELLING = {name: path for name, path in MODULES.items() if name.endswith("_it3") and name != "hf_it3"}


def imports_of(path: Path, module: str, at_import: bool = False) -> list[ast.Import | ast.ImportFrom]:
    """The import statements of a file but those for type checkers; with `at_import` only those that run on import."""
    tree = ast.parse(path.read_text(), str(path))
    found, todo = [], list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found.append(node)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            todo += node.orelse
        elif not at_import or isinstance(node, (ast.If, ast.Try, ast.With, ast.ClassDef)):
            todo += list(ast.iter_child_nodes(node))
    return found


def targets(node: ast.Import | ast.ImportFrom, module: str) -> set[str]:
    """Full names of the modules that a statement imports, as far as they are modules of the package."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    base = node.module or ""
    if node.level:
        package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
        parts = package.split(".")
        base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])
    names = {f"{base}.{alias.name}" for alias in node.names}
    return {name for name in names if name in MODULES} or {base}


def top_level(node: ast.Import | ast.ImportFrom) -> set[str]:
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
    return {name.partition(".")[0] for name in names}


def test_modules_import_each_other_in_one_direction_only():
    graph = {
        module: {
            target
            for node in imports_of(path, module, at_import=True)
            for target in targets(node, module)
            if target in MODULES and target != module
        }
        for module, path in MODULES.items()
    }
    assert sum(map(len, graph.values())) > 50
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


# From left to right: a room imports itself and what stands before it.
ROOMS = ["it3", "utils", "data", "training", "evaluation", "hub", "demo", "app", "cli"]
# Public names of things that live in a room.
ALIASES = {"corruptions": "evaluation", "calibration": "evaluation"}


def room_of(module: str) -> str | None:
    """The room of a module of the package, `None` for those that belong to all: the package itself and its version."""
    parts = module.split(".")
    if len(parts) == 1 or parts[1] == "version":
        return None
    return ALIASES.get(parts[1], parts[1])


def test_every_module_has_a_room():
    assert {room_of(module) for module in MODULES} == {None, *ROOMS}
    assert len([path for path in ROOT.iterdir() if path.suffix == ".py"]) <= 8


@pytest.mark.parametrize("module", MODULES)
def test_nothing_on_the_left_imports_anything_on_its_right_not_inside_functions_either(module):
    if room_of(module) is None:
        return
    allowed = ROOMS[: ROOMS.index(room_of(module)) + 1]
    for node in imports_of(MODULES[module], module):
        for target in targets(node, module):
            if target in MODULES and room_of(target) is not None:
                assert room_of(target) in allowed, ast.unparse(node)


def test_training_loads_neither_evaluation_nor_cards_nor_plots():
    script = "import sys; from hf_it3 import IT3Trainer; print(*[name for name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "hf_it3.training.trainer" in loaded
    rooms = ("hf_it3.evaluation", "hf_it3.hub", "hf_it3.demo", "hf_it3.app", "hf_it3.cli", "matplotlib")
    assert not [name for name in loaded if name.startswith(rooms)]


@pytest.mark.parametrize("module", TRAVELLING)
def test_what_travels_imports_only_siblings_that_travel_and_common_packages(module):
    allowed = {"torch", "transformers", "huggingface_hub", "safetensors", "numpy", "PIL", *sys.stdlib_module_names}
    tree = ast.parse(MODULES[module].read_text())
    in_try = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Try)
        for inner in ast.walk(node)
        if isinstance(inner, (ast.Import, ast.ImportFrom))
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, ast.unparse(node)
            assert node.module is not None, ast.unparse(node)
            assert node.module.endswith("_it3"), ast.unparse(node)
            assert (ROOT / "it3" / f"{node.module}.py").exists(), ast.unparse(node)
        elif isinstance(node, (ast.Import, ast.ImportFrom)) and id(node) not in in_try:
            assert top_level(node) <= allowed, ast.unparse(node)


@pytest.mark.parametrize("module", TRAVELLING)
def test_docstrings_of_what_travels_hold_no_relative_import(module):
    """The scanner of remote code reads lines, and would take such a line for an import."""
    tree = ast.parse(MODULES[module].read_text())
    docstrings = [
        ast.get_docstring(node) or ""
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
    ]
    assert not [line for text in docstrings for line in text.splitlines() if line.strip().startswith("from .")]


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_torchvision_or_torch_ttt(module):
    imported = {name for node in imports_of(MODULES[module], module) for name in top_level(node)}
    assert imported.isdisjoint({"torchvision", "torch_ttt", "einops"})


SLOW = {"sklearn"}  # takes a second
OPTIONAL = {"matplotlib", "imagecorruptions", "timm", "gradio"}


@pytest.mark.parametrize("module", MODULES)
def test_optional_and_slow_dependencies_are_imported_where_they_are_used(module):
    imported = {name for node in imports_of(MODULES[module], module, at_import=True) for name in top_level(node)}
    # The modules of the web page are imported by the subcommand that serves it.
    allowed = {"gradio"} if module.startswith("hf_it3.app.") else set()
    assert imported.isdisjoint((OPTIONAL | SLOW) - allowed)


@pytest.mark.parametrize("module", MODULES)
def test_a_file_fits_in_one_reading(module):
    assert len(MODULES[module].read_text().splitlines()) <= 420
