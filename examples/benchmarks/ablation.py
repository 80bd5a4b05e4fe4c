# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-it3"]
#
# [tool.uv.sources]
# hf-it3 = { path = "../..", editable = true }
# ///
"""What each part of adaptation adds: corrected statistics, the diversity term, and idempotence.

    python examples/benchmarks/ablation.py runs/mnist-it3 runs/mnist-it3/seed_1 --dataset ylecun/mnist

Adapts to every batch, without the gate, so that columns differ in what is minimised alone:

- `statistics`: no step; features are corrected where the backbone has BatchNorm or has measured clean images.
- `diversity`: these, and steps on the diversity term.
- `entropy`: these, and steps on entropy and diversity, as in SHOT (Liang et al., ICML 2020).
- `idempotence`: these, and steps on the idempotence distance without the diversity term.
- `both`: these, and steps on idempotence distance and diversity, the default.
"""

import argparse

import torch
from torch import Tensor

from hf_it3 import AdaptationConfig
from hf_it3.evaluation import evaluate_robustness


def nothing(y1: Tensor, y0: Tensor) -> Tensor:
    """A distance that leaves the objective to the diversity term."""
    return 0 * y0.sum(1)


VARIANTS = {
    "statistics": {"num_steps": 0},
    "diversity": {"distance": nothing},
    "entropy": {"distance": "entropy"},
    "idempotence": {"diversity_weight": 0.0},
    "both": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="directory or Hub name; several are averaged")
    parser.add_argument("--dataset", required=True, help="Hub name or path, or digits (bundled)")
    parser.add_argument("--split", default="test")
    parser.add_argument("--corruptions", default="digits-shift")
    parser.add_argument("--severities", default="one")
    parser.add_argument("--batch_size", type=int, default=256, help="images that adapt together")
    parser.add_argument("--num_samples", type=int, default=1280)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    methods = {name: AdaptationConfig(gate=None, **settings) for name, settings in VARIANTS.items()}
    results = evaluate_robustness(
        options.models,
        options.dataset,
        split=options.split,
        corruptions=options.corruptions,
        severities=options.severities,
        methods=methods,
        batch_size=options.batch_size,
        num_samples=options.num_samples,
    )
    print(results)


if __name__ == "__main__":
    main()
