"""ImageNet-C, with the parameters of CIFAR-10-C and Tiny ImageNet-C for small images.

Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR 2019.
All lengths are in pixels of the image, whatever its size. Severities are the published ones: those of
`elastic_transform`, `glass_blur` and a few others do not change images more and more.

What differs from the published files: images are not stored as JPEG afterwards (as ImageNet-C is) nor cut down to
8 bits, and the random numbers are others.
"""

from functools import partial

from .blur import defocus_blur, glass_blur, motion_blur, zoom_blur
from .corruption import Corruption
from .digital import contrast, elastic_transform, jpeg_compression, pixelate
from .frost import frost, why_no_photographs
from .noise import gaussian_noise, impulse_noise, shot_noise
from .weather import brightness, fog, snow


_imagenet_c = partial(
    Corruption,
    suite="imagenet-c",
    source="Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, "
    "ICLR 2019; parameters of github.com/hendrycks/robustness for CIFAR-10-C, Tiny ImageNet-C and ImageNet-C",
)

CORRUPTIONS = (
    _imagenet_c(
        name="gaussian_noise",
        function=gaussian_noise,
        tables={
            32: {"sigma": (0.04, 0.06, 0.08, 0.09, 0.10)},
            64: {"sigma": (0.04, 0.08, 0.12, 0.15, 0.18)},
            224: {"sigma": (0.08, 0.12, 0.18, 0.26, 0.38)},
        },
    ),
    _imagenet_c(
        name="shot_noise",
        function=shot_noise,
        tables={
            32: {"photons": (500, 250, 100, 75, 50)},
            64: {"photons": (250, 100, 50, 30, 15)},
            224: {"photons": (60, 25, 12, 5, 3)},
        },
    ),
    _imagenet_c(
        name="impulse_noise",
        function=impulse_noise,
        tables={
            32: {"amount": (0.01, 0.02, 0.03, 0.05, 0.07)},
            64: {"amount": (0.01, 0.02, 0.05, 0.08, 0.14)},
            224: {"amount": (0.03, 0.06, 0.09, 0.17, 0.27)},
        },
    ),
    _imagenet_c(
        name="defocus_blur",
        function=defocus_blur,
        tables={
            32: {"radius": (0.3, 0.4, 0.5, 1, 1.5), "softness": (0.4, 0.5, 0.6, 0.2, 0.1)},
            64: {"radius": (0.5, 1, 1.5, 2.5, 3), "softness": (0.6, 0.1, 0.1, 0.01, 0.1)},
            224: {"radius": (3, 4, 6, 8, 10), "softness": (0.1, 0.5, 0.5, 0.5, 0.5)},
        },
    ),
    _imagenet_c(
        name="glass_blur",
        function=glass_blur,
        tables={
            32: {"sigma": (0.05, 0.25, 0.4, 0.25, 0.4), "max_delta": (1,), "iterations": (1, 1, 1, 2, 2)},
            64: {"sigma": (0.1, 0.5, 0.6, 0.7, 0.9), "max_delta": (1, 1, 1, 2, 2), "iterations": (1, 1, 2, 1, 2)},
            224: {"sigma": (0.7, 0.9, 1, 1.1, 1.5), "max_delta": (1, 2, 2, 3, 4), "iterations": (2, 1, 3, 2, 2)},
        },
    ),
    _imagenet_c(
        name="motion_blur",
        function=motion_blur,
        tables={
            32: {"radius": (6, 6, 6, 8, 9), "sigma": (1, 1.5, 2, 2, 2.5)},
            64: {"radius": (10, 10, 10, 10, 12), "sigma": (1, 1.5, 2, 2.5, 3)},
            224: {"radius": (10, 15, 15, 15, 20), "sigma": (3, 5, 8, 12, 15)},
        },
    ),
    _imagenet_c(
        name="zoom_blur",
        function=zoom_blur,
        tables={
            32: {"stop": (1.06, 1.11, 1.16, 1.21, 1.26), "step": (0.01,)},
            64: {"stop": (1.06, 1.11, 1.16, 1.21, 1.26), "step": (0.01,)},
            224: {"stop": (1.11, 1.16, 1.21, 1.26, 1.31), "step": (0.01, 0.01, 0.02, 0.02, 0.03)},
        },
    ),
    _imagenet_c(
        name="snow",
        function=snow,
        tables={
            32: {
                "mean": (0.1, 0.1, 0.15, 0.25, 0.3),
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
                "mean": (0.1, 0.2, 0.55, 0.55, 0.55),
                "spread": (0.3,),
                "flake": (3, 2, 4, 4.5, 2.5),
                "threshold": (0.5, 0.5, 0.9, 0.85, 0.85),
                "radius": (10, 12, 12, 12, 12),
                "sigma": (4, 4, 8, 8, 12),
                "keep": (0.8, 0.7, 0.7, 0.65, 0.55),
            },
        },
    ),
    _imagenet_c(
        name="frost",
        function=frost,
        tables={
            32: {"keep": (1, 1, 0.9, 0.85, 0.75), "amount": (0.2, 0.3, 0.4, 0.4, 0.45), "scale": (0.2,)},
            64: {"keep": (1, 0.9, 0.8, 0.75, 0.7), "amount": (0.3, 0.4, 0.45, 0.5, 0.55), "scale": (0.3,)},
            224: {"keep": (1, 0.8, 0.7, 0.65, 0.6), "amount": (0.4, 0.6, 0.7, 0.7, 0.75), "scale": (1,)},
        },
        why_missing=why_no_photographs,
    ),
    _imagenet_c(
        name="fog",
        function=fog,
        tables={
            32: {"amount": (0.2, 0.5, 0.75, 1, 1.5), "decay": (3, 3, 2.5, 2, 1.75)},
            64: {"amount": (0.4, 0.7, 1, 1.5, 2), "decay": (3, 3, 2.5, 2, 1.75)},
            224: {"amount": (1.5, 2, 2.5, 2.5, 3), "decay": (2, 2, 1.7, 1.5, 1.4)},
        },
    ),
    _imagenet_c(
        name="brightness",
        function=brightness,
        tables={
            32: {"amount": (0.05, 0.1, 0.15, 0.2, 0.3)},
            64: {"amount": (0.1, 0.2, 0.3, 0.4, 0.5)},
            224: {"amount": (0.1, 0.2, 0.3, 0.4, 0.5)},
        },
    ),
    _imagenet_c(
        name="contrast",
        function=contrast,
        tables={
            32: {"factor": (0.75, 0.5, 0.4, 0.3, 0.15)},
            64: {"factor": (0.4, 0.3, 0.2, 0.1, 0.05)},
            224: {"factor": (0.4, 0.3, 0.2, 0.1, 0.05)},
        },
    ),
    # In the published code lengths are shares of 32, 64 and 244 (not 224) pixels.
    _imagenet_c(
        name="elastic_transform",
        function=elastic_transform,
        moves=True,
        tables={
            32: {
                "alpha": (0, 1.6, 2.56, 3.2, 3.2),
                "sigma": (0, 6.4, 1.92, 1.28, 0.96),
                "corner": (2.56, 2.24, 1.92, 1.6, 0.96),
            },
            64: {
                "alpha": (0, 3.2, 6.4, 6.4, 10.24),
                "sigma": (0, 19.2, 5.12, 1.92, 1.92),
                "corner": (5.12, 3.84, 3.84, 1.92, 1.28),
            },
            224: {
                "alpha": (488, 488, 12.2, 17.08, 29.28),
                "sigma": (170.8, 19.52, 2.44, 2.44, 2.44),
                "corner": (24.4, 48.8, 4.88, 4.88, 4.88),
            },
        },
    ),
    _imagenet_c(
        name="pixelate",
        function=pixelate,
        tables={
            32: {"factor": (0.95, 0.9, 0.85, 0.75, 0.65)},
            64: {"factor": (0.9, 0.8, 0.7, 0.6, 0.5)},
            224: {"factor": (0.6, 0.5, 0.4, 0.3, 0.25)},
        },
    ),
    _imagenet_c(
        name="jpeg_compression",
        function=jpeg_compression,
        tables={
            32: {"quality": (80, 65, 58, 50, 40)},
            64: {"quality": (65, 58, 50, 40, 25)},
            224: {"quality": (25, 18, 15, 10, 7)},
        },
    ),
)
