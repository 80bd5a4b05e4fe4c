"""The notebook of the tutorial runs from top to bottom, offline and in a small setting, and shows what it promises."""

import json
import re
from pathlib import Path

import pytest


NOTEBOOK = json.loads((Path(__file__).parent.parent / "examples" / "mnist.ipynb").read_text(encoding="utf-8"))
CELLS = NOTEBOOK["cells"]
# The bundled digits, and no more training than it takes to tell them apart.
SMALL = {"DATASET": '"digits"', "NUM_EPOCHS": "4", "TRAIN_BATCH_SIZE": "32", "MEAN, STD": "0.31, 0.38"}


def source_of(cell: dict) -> str:
    return "".join(cell["source"])


def in_small(source: str) -> str:
    """A cell with the settings of the test; lines for the notebook alone (`%pip`) are left out."""
    for name, value in SMALL.items():
        source = re.sub(rf"^{name} = .*$", f"{name} = {value}", source, flags=re.MULTILINE)
    return re.sub(r"^%.*$", "", source, flags=re.MULTILINE)


def test_colab_and_jupyter_can_open_it():
    assert NOTEBOOK["nbformat"] == 4
    assert NOTEBOOK["metadata"]["kernelspec"]["name"] == "python3"
    assert {cell["cell_type"] for cell in CELLS} == {"markdown", "code"}
    assert source_of(CELLS[0]).startswith("# ")
    installing = next(source_of(cell) for cell in CELLS if cell["cell_type"] == "code")
    assert re.search(r'^%pip install --quiet "hf-it3\[demo\]"$', installing, flags=re.MULTILINE)


def test_it_shows_figures_of_a_whole_run_and_nothing_of_the_machine():
    outputs = [output for cell in CELLS if cell["cell_type"] == "code" for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    text = json.dumps([{**output, "data": {**output.get("data", {}), "image/png": ""}} for output in outputs])
    assert text.count("% right") == 4
    assert not re.search(r"/(work|home|root|tmp|content)/|rror", text)


def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib", reason="the notebook draws").use("agg")
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for number, cell in enumerate(CELLS):
        if cell["cell_type"] == "code":
            exec(compile(in_small(source_of(cell)), f"mnist.ipynb, cell {number}", "exec"), namespace)
    namespace["plt"].close("all")
    right = [float(value) for value in re.findall(r"([\d.]+)% right", capsys.readouterr().out)]
    clean, clean_adapted, noisy, _ = right
    assert clean > 80
    assert clean > noisy
    assert clean_adapted > 80
    assert (tmp_path / "mnist-it3" / "model.safetensors").is_file()
