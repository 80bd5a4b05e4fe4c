"""Prints where the label signal enters a model and what adaptation would change in it.

Takes an idempotent model or any image classifier, by Hub name or local path. Only the configuration is downloaded.
"""

import argparse
from typing import TYPE_CHECKING

from ..utils import aligned
from .options import add_shared, positive


if TYPE_CHECKING:
    from .inspection import LayerDescription


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the model, and what to print of it."""
    parser.add_argument("model", metavar="MODEL", help="Hub name or local path of a model")
    parser.add_argument("--injection_layer", help="try this layer instead of the model's own")
    parser.add_argument("--image_size", type=positive, help="height and width of the images, in pixels")
    parser.add_argument("--layers", action="store_true", help="list every layer that can take the label signal")
    add_shared(parser, "revision", "trust_remote_code")


def run(arguments: argparse.Namespace) -> None:
    """Prints one line per property, then the layers if asked for."""
    from .inspection import inspect_model, model_to_inspect

    hub = {} if arguments.revision is None else {"revision": arguments.revision}
    hub["trust_remote_code"] = arguments.trust_remote_code
    model = model_to_inspect(arguments.model, arguments.injection_layer, **hub)
    found = inspect_model(model, arguments.layers, arguments.image_size)
    rows: list[tuple[str, ...]] = [
        ("backbone", f"{found.backbone}, {found.num_labels} labels"),
        ("parameters", f"{found.num_parameters:,}"),
        ("injection layer", found.injection.name),
        ("layout", f"{found.injection.layout}, {_shape(found.injection)} for 2 images"),
        ("channels", str(found.injection.channels)),
        *((f"adapted by {choice!r}", f"{count:,} values") for choice, count in found.adapted.items()),
        ("BatchNorm", f"{found.batch_norms} layers, each with signal statistics" if found.batch_norms else "none"),
    ]
    rows.append(("kind of backbone", f"{found.kind}, which decides what is left open of the settings:"))
    rows += [(f"  {name}", value) for name, value in found.settings.items()]
    if found.injection.batch_norm_behind:
        rows.append(("better layer", f"{found.injection.batch_norm_behind}, the BatchNorm right behind"))
    _print_table(rows)
    if found.layers:
        print()
        header = ("layer", "layout", "shape", "channels", "BatchNorm right behind")
        lines = [(la.name, la.layout, _shape(la), str(la.channels), la.batch_norm_behind or "") for la in found.layers]
        _print_table([header, *lines])


def _shape(layer: "LayerDescription") -> str:
    return "x".join(map(str, layer.shape))


def _print_table(rows: list[tuple[str, ...]]) -> None:
    print("\n".join(aligned(rows)))
