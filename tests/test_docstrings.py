"""Every public name says what it is, and the examples in docstrings run and print what they say."""

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch
from transformers import set_seed

import hf_it3


MODULES = ["hf_it3"] + [
    info.name for info in pkgutil.walk_packages(hf_it3.__path__, "hf_it3.") if not info.name.endswith("__main__")
]


class Checker(doctest.OutputChecker):
    """Compares what an example prints where the docstring shows any output."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


def load(name: str):
    """The module of that name; those of the web page only where its extra is installed."""
    if name.startswith("hf_it3.app."):
        pytest.importorskip("gradio", reason="the extra [app] is not installed")
    return importlib.import_module(name)


def is_ours(value) -> bool:
    return (getattr(value, "__module__", None) or "").startswith("hf_it3")


@pytest.fixture
def names_in_examples(model, processor, digits):
    """What examples may use without making it first."""
    dataset = digits["test"].select(range(24))
    return {
        "images": torch.rand(8, 1, 28, 28),
        "dataset": dataset,
        "held_out_images": dataset,
        "model": model,
        "image_processor": processor,
    }


@pytest.mark.parametrize("name", MODULES)
def test_examples_run_and_print_what_they_say(name, names_in_examples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    set_seed(0)
    module = load(name)
    runner = doctest.DocTestRunner(Checker(), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name, extraglobs=names_in_examples):
        output = []
        runner.run(test, out=output.append)
        assert not output, "".join(output)


@pytest.mark.parametrize("name", [name for name in hf_it3.__all__ if name != "__version__"])
def test_public_classes_are_shown_in_use(name):
    if name.endswith(("Output", "Embedder")):
        pytest.skip("made by the library, not by its users")
    assert ">>> " in inspect.getdoc(getattr(hf_it3, name))


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_has_a_docstring(name):
    module = load(name)
    missing = [] if module.__doc__ else [name]
    for attribute, value in vars(module).items():
        is_definition = inspect.isclass(value) or inspect.isfunction(value)
        if attribute.startswith("_") or not is_definition or value.__module__ != name:
            continue
        missing += [attribute] if not value.__doc__ else []
        if inspect.isclass(value):
            missing += [f"{attribute}.{method}" for method in undocumented_methods(value)]
    assert missing == []


def undocumented_methods(cls: type) -> list[str]:
    """Public methods that a class defines without a docstring of their own or of a parent's."""
    names = []
    for name, value in vars(cls).items():
        function = getattr(value, "__func__", value)
        if name.startswith("_") or not inspect.isfunction(function) or not is_ours(function):
            continue
        if name == "forward" or inspect.getdoc(getattr(cls, name)):
            continue
        names.append(name)
    return names


def test_public_names_are_listed_and_importable():
    assert sorted(hf_it3.__all__, key=str.lower) == sorted(set(hf_it3.__all__), key=str.lower)
    assert set(hf_it3.__all__) <= set(dir(hf_it3))
    for name in hf_it3.__all__:
        assert getattr(hf_it3, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'IT3Model'"):
        _ = hf_it3.IT3Model
