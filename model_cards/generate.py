"""Writes the model cards in this directory from the results beside them.

Each model has a folder with `results.json` (what was measured), `config.json` (of the trained model), pictures, and
perhaps `comparison.json` (with torch-ttt).

    python model_cards/generate.py                              writes every README.md again
    python model_cards/generate.py digits-it3=runs/digits-it3         takes results from a run first
    python examples/from_torch_ttt.py --dataset ylecun/mnist --seeds 7,1,2 \\
        --output model_cards/mnist-it3/comparison.json              compares with torch-ttt, for its card
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from hf_it3 import IT3Config
from hf_it3.demo import EXAMPLE
from hf_it3.evaluation.demo_report import condition_results
from hf_it3.hub.card_merging import CARD_NAME
from hf_it3.hub.model_card import build_model_card


HERE = Path(__file__).parent
TAKEN = ("results.json", "config.json")
# What examples/from_torch_ttt.py --output writes, where it is in the folder.
COMPARISON = "comparison.json"
CAPTIONS = {
    "digits.png": "Test images: clean, and with Gaussian noise",
    "accuracy.png": "Accuracy of single batches, without and with adaptation",
}
TITLES = {"digits": "scikit-learn's bundled digits", "mnist": "MNIST", "ylecun/mnist": "MNIST"}


def card_of(directory: Path) -> ModelCard:
    """The card of the model whose results are in a directory."""
    document = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    dataset, threads = document["dataset"], document.get("threads", 1)
    comparison = directory / COMPARISON
    return build_model_card(
        IT3Config.from_pretrained(directory),
        model_id=directory.name,
        results=_results(document),
        dataset="ylecun/mnist" if dataset == "mnist" else dataset,
        dataset_name=TITLES.get(dataset, dataset),
        license="apache-2.0",
        training=document.get("training"),
        comparison=json.loads(comparison.read_text(encoding="utf-8")) if comparison.is_file() else None,
        example=EXAMPLE if (directory / EXAMPLE).is_file() else None,
        versions=document["versions"],
        hardware=document.get("hardware") or f"a CPU, {threads} thread{'s' if threads > 1 else ''}",
        plots=[(name, caption) for name, caption in CAPTIONS.items() if (directory / name).is_file()],
    )


def _results(document: dict[str, Any]) -> list[dict[str, Any]]:
    return document["results"] if "results" in document else condition_results(document)


def take(name: str, run: Path) -> None:
    """Copies results, configuration and pictures of a run into the folder of a model."""
    directory = HERE / name
    directory.mkdir(exist_ok=True)
    for file in (*TAKEN, COMPARISON, EXAMPLE, *CAPTIONS):
        if (run / file).is_file() or file in TAKEN:
            shutil.copyfile(run / file, directory / file)


def main() -> None:
    """Takes the runs that are named and writes all cards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="NAME=DIR", help="results to take over")
    for given in parser.parse_args().runs:
        name, _, run = given.partition("=")
        take(name, Path(run))
    for results in sorted(HERE.glob("*/results.json")):
        path = results.parent / CARD_NAME
        path.write_text(str(card_of(results.parent)), encoding="utf-8")
        print(path.relative_to(HERE.parent))


if __name__ == "__main__":
    main()
