"""The suite of this project: corruptions that change images of any size more and more, for questions of strength.

Five severities of each corruption of ImageNet-C and of MNIST-C, with the same random numbers at all severities: the
same flakes, lines or direction, only stronger, so that severities are compared on equal terms. Most parameters are
the published ones; where a higher published severity changes images less than a lower one, they differ. Frost is
computed instead of photographed, lengths scale with the image side beyond 28, 64 or 224 px. **Figures on this suite
are not those of the published benchmarks.**
"""

from functools import partial

from . import imagenet_c, mnist_c
from .blur import glass_blur, motion_blur
from .corruption import Corruption
from .digital import elastic_transform, pixelate
from .drawing import canny_edges, dotted_line, spatter, zigzag
from .frost import synthetic_frost
from .geometry import stripe
from .weather import fog, snow


_graded = partial(
    Corruption,
    suite="graded",
    source="this project, after ImageNet-C and MNIST-C; strength grows with severity",
    same_randomness=True,
)

_OWN = (
    _graded(
        name="glass_blur",
        function=glass_blur,
        tables={
            32: {
                "sigma": (0.4,),
                "max_delta": (1,),
                "iterations": (1, 1, 1, 2, 3),
                "share": (0.5, 0.75, 1, 1, 1),
            },
            64: {
                "sigma": (0.5, 0.5, 0.6, 0.7, 0.9),
                "max_delta": (1, 1, 1, 2, 2),
                "iterations": (1, 1, 2, 2, 3),
                "share": (0.5, 1, 1, 1, 1),
            },
            224: {"sigma": (0.7, 0.9, 1, 1.1, 1.5), "max_delta": (1, 2, 2, 3, 4), "iterations": (1, 1, 2, 2, 3)},
        },
        lengths=("sigma", "max_delta"),
    ),
    _graded(
        name="motion_blur",
        function=motion_blur,
        tables={
            32: {"radius": (6, 6, 6, 8, 9), "sigma": (1, 1.5, 2, 2.25, 2.5)},
            64: {"radius": (10, 10, 10, 10, 12), "sigma": (1, 1.5, 2, 2.5, 3)},
            224: {"radius": (10, 15, 15, 15, 20), "sigma": (3, 5, 8, 12, 15)},
        },
        lengths=("radius", "sigma"),
    ),
    _graded(
        name="snow",
        function=snow,
        tables={
            32: {
                "mean": (0.1, 0.1, 0.2, 0.25, 0.3),
                "spread": (0.2, 0.2, 0.3, 0.3, 0.3),
                "flake": (1, 1, 1.75, 2.25, 1.25),
                "threshold": (0.6, 0.5, 0.55, 0.6, 0.65),
                "radius": (8, 10, 10, 12, 14),
                "sigma": (3, 4, 4, 6, 12),
                "keep": (0.95, 0.9, 0.9, 0.85, 0.8),
            },
            64: {
                "mean": (0.1, 0.1, 0.15, 0.25, 0.3),
                "spread": (0.2, 0.2, 0.3, 0.3, 0.3),
                "flake": (1, 1, 1.75, 2.25, 1.25),
                "threshold": (0.6, 0.5, 0.55, 0.6, 0.65),
                "radius": (8, 10, 10, 12, 14),
                "sigma": (3, 4, 4, 6, 12),
                "keep": (0.8, 0.8, 0.7, 0.65, 0.6),
            },
            224: {
                "mean": (0.1, 0.15, 0.55, 0.55, 0.55),
                "spread": (0.3,),
                "flake": (3, 3, 4, 4.5, 2.5),
                "threshold": (0.5, 0.5, 0.9, 0.85, 0.85),
                "radius": (10, 12, 12, 12, 12),
                "sigma": (4, 4, 8, 8, 12),
                "keep": (0.8, 0.7, 0.7, 0.65, 0.55),
            },
        },
        lengths=("flake", "radius", "sigma"),
    ),
    _graded(
        name="frost",
        function=synthetic_frost,
        tables={
            32: {"keep": (1, 1, 0.9, 0.85, 0.75), "amount": (0.2, 0.3, 0.4, 0.4, 0.45)},
            64: {"keep": (1, 0.9, 0.8, 0.75, 0.7), "amount": (0.3, 0.4, 0.45, 0.5, 0.55)},
            224: {"keep": (1, 0.8, 0.7, 0.65, 0.6), "amount": (0.4, 0.6, 0.7, 0.7, 0.75)},
        },
    ),
    _graded(
        name="fog",
        function=fog,
        tables={
            32: {"amount": (0.2, 0.5, 0.75, 1, 1.5), "decay": (3, 3, 2.5, 2, 1.75)},
            64: {"amount": (0.4, 0.7, 1, 1.5, 2), "decay": (3, 3, 2.5, 2, 1.75)},
            224: {"amount": (1.5, 2, 2.5, 3, 3.5), "decay": (2, 2, 1.7, 1.5, 1.4)},
        },
    ),
    _graded(
        name="elastic_transform",
        function=elastic_transform,
        moves=True,
        tables={
            32: {
                "alpha": (3.2, 3.2, 2.56, 1.6, 0),
                "sigma": (0.96, 1.28, 1.92, 6.4, 0),
                "corner": (0.96, 1.6, 1.92, 2.24, 2.56),
            },
            64: {
                "alpha": (6.4, 6.4, 3.2, 6.4, 0),
                "sigma": (1.92, 1.92, 19.2, 5.12, 0),
                "corner": (1.28, 1.92, 3.2, 3.84, 5.12),
            },
            224: {
                "alpha": (12.2, 17.08, 29.28, 488, 488),
                "sigma": (2.44, 2.44, 2.44, 170.8, 19.52),
                "corner": (4.88, 4.88, 4.88, 24.4, 48.8),
            },
        },
        lengths=("alpha", "sigma", "corner"),
    ),
    _graded(
        name="pixelate",
        function=pixelate,
        tables={
            32: {"factor": (0.965, 0.9, 0.85, 0.75, 0.65)},
            64: {"factor": (0.9, 0.8, 0.7, 0.6, 0.5)},
            224: {"factor": (0.6, 0.5, 0.4, 0.3, 0.25)},
        },
    ),
    _graded(name="stripe", function=stripe, tables={28: {"width": (3, 5, 7, 9, 11)}}, lengths=("width",)),
    _graded(
        name="spatter",
        function=spatter,
        tables={
            28: {
                "mean": (0.65,),
                "spread": (0.3,),
                "grain": (1,),
                "drop": (1,),
                "threshold": (0.69, 0.67, 0.65, 0.63, 0.61),
                "edge": (1.5,),
            }
        },
        lengths=("grain", "drop", "edge"),
    ),
    _graded(name="dotted_line", function=dotted_line, tables={28: {"thickness": (1.3, 1.8, 2.3, 2.8, 3.3)}}),
    _graded(name="zigzag", function=zigzag, tables={28: {"thickness": (1.3, 1.8, 2.3, 2.8, 3.3)}}),
    _graded(name="canny_edges", function=canny_edges, tables={28: {"share": (0.2, 0.4, 0.6, 0.8, 1.0)}}),
)


def _all() -> tuple[Corruption, ...]:
    """Those above, and the others with their published parameters, which are graded already."""
    own = {corruption.name: corruption for corruption in _OWN}
    published = {c.name: c for c in (*mnist_c.CORRUPTIONS, *imagenet_c.CORRUPTIONS)}
    names = dict.fromkeys(c.name for c in (*imagenet_c.CORRUPTIONS, *mnist_c.CORRUPTIONS))
    return tuple(
        own.get(name)
        or _graded(
            name=name,
            function=published[name].function,
            tables=published[name].tables,
            lengths=("radius",) if name == "defocus_blur" else published[name].lengths,
            moves=published[name].moves,
        )
        for name in names
    )


CORRUPTIONS = _all()
