"""MNIST-C: fifteen corruptions of grey images of 28x28 pixels.

Mu and Gilmer, MNIST-C: A Robustness Benchmark for Computer Vision, 2019 (arXiv 1906.02337). It was published at one
severity per corruption, `Corruption.published_severity`; the other four are those that the published code lists
beside it. Four corruptions (stripe, dotted_line, zigzag, canny_edges) have one setting and so no severities. For
images of other sizes, which the suite does not define, lengths scale with the image side.
"""

from functools import partial

from .blur import glass_blur, motion_blur
from .corruption import Corruption
from .drawing import canny_edges, dotted_line, spatter, zigzag
from .geometry import rotate, scale, shear, stripe, translate
from .noise import impulse_noise, shot_noise
from .weather import brightness, fog


_mnist_c = partial(
    Corruption,
    suite="mnist-c",
    source="Mu and Gilmer, MNIST-C: A Robustness Benchmark for Computer Vision, 2019 (arXiv 1906.02337); "
    "parameters of github.com/google-research/mnist-c",
)

CORRUPTIONS = (
    _mnist_c(
        name="shot_noise",
        function=shot_noise,
        tables={28: {"photons": (60, 25, 12, 5, 3)}},
        published_severity=5,
    ),
    _mnist_c(
        name="impulse_noise",
        function=impulse_noise,
        tables={28: {"amount": (0.03, 0.06, 0.09, 0.17, 0.27)}},
        published_severity=4,
    ),
    _mnist_c(
        name="glass_blur",
        function=glass_blur,
        tables={
            28: {
                "sigma": (0.7, 0.9, 1, 1.1, 1.5),
                "max_delta": (1, 2, 2, 3, 4),
                "iterations": (2, 1, 3, 2, 2),
                "share": (0.5,),
                "as_grey": (True,),
            }
        },
        lengths=("sigma", "max_delta"),
        published_severity=1,
    ),
    _mnist_c(
        name="motion_blur",
        function=motion_blur,
        tables={28: {"radius": (10, 15, 15, 15, 20), "sigma": (3, 5, 8, 12, 15)}},
        lengths=("radius", "sigma"),
        published_severity=1,
    ),
    _mnist_c(
        name="shear",
        function=shear,
        tables={28: {"angle": (0.2, 0.4, 0.6, 0.8, 1.0)}},
        published_severity=2,
        moves=True,
    ),
    _mnist_c(
        name="scale",
        function=scale,
        tables={28: {"factor": (0.9, 0.8, 0.7, 0.6, 0.5)}},
        published_severity=3,
        moves=True,
    ),
    _mnist_c(
        name="rotate",
        function=rotate,
        tables={28: {"angle": (0.2, 0.4, 0.6, 0.8, 1.0)}},
        published_severity=2,
        moves=True,
    ),
    _mnist_c(
        name="brightness",
        function=brightness,
        tables={28: {"amount": (0.1, 0.2, 0.3, 0.4, 0.5)}},
        published_severity=5,
    ),
    _mnist_c(
        name="translate",
        function=translate,
        tables={28: {"distance": (1, 2, 3, 4, 5)}},
        lengths=("distance",),
        published_severity=3,
        moves=True,
    ),
    _mnist_c(name="stripe", function=stripe, tables={28: {"width": (7,)}}, lengths=("width",)),
    _mnist_c(
        name="fog",
        function=fog,
        tables={28: {"amount": (1.5, 2, 2.5, 2.5, 3), "decay": (2, 2, 1.7, 1.5, 1.4), "side": (256,)}},
        lengths=("side",),
        published_severity=5,
    ),
    _mnist_c(
        name="spatter",
        function=spatter,
        tables={
            28: {
                "mean": (0.65, 0.65, 0.65, 0.65, 0.67),
                "spread": (0.3, 0.3, 0.3, 0.3, 0.4),
                "grain": (1,),
                "drop": (4, 3, 2, 1, 1),
                "threshold": (0.69, 0.68, 0.68, 0.65, 0.65),
                "edge": (0.6, 0.6, 0.5, 1.5, 1.5),
            }
        },
        lengths=("grain", "drop", "edge"),
        published_severity=4,
    ),
    _mnist_c(name="dotted_line", function=dotted_line, tables={28: {"thickness": (2.3,)}}),
    _mnist_c(name="zigzag", function=zigzag, tables={28: {"thickness": (2.3,)}}),
    _mnist_c(name="canny_edges", function=canny_edges, tables={28: {"share": (1.0,)}}),
)
