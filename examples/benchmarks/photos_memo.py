"""MEMO, the baseline for single images in `photos.py` (Zhang et al., NeurIPS 2022, arXiv 2110.09506)."""

import copy
import random
from collections.abc import Callable

import numpy as np
import torch
from photos_backbones import normalize
from PIL import Image, ImageOps
from torch import Tensor, nn

from hf_it3.it3.batchnorm_it3 import norm_statistics


# Views per image, their SGD step, and the weight of the training statistics in images, as the paper has them for a
# ResNet on ImageNet, with half the views.
NUM_VIEWS = 32
LEARNING_RATE = 2.5e-4
PRIOR_COUNT = 16


def _affine(*coefficients: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)


def _random_operation(size: int) -> Callable[[Image.Image], Image.Image]:
    """One of AugMix's operations (Hendrycks et al., ICLR 2020), at a random strength of at most a tenth of its
    highest."""
    level = random.uniform(0.01, 0.1) * 10
    signed = random.choice((-1, 1)) * level
    return random.choice(
        (
            ImageOps.autocontrast,
            ImageOps.equalize,
            lambda image: ImageOps.posterize(image, max(1, 4 - int(level * 0.4))),
            lambda image: image.rotate(signed * 3, Image.Resampling.BILINEAR),
            lambda image: ImageOps.solarize(image, 256 - int(level * 25.6)),
            _affine(1, signed * 0.03, 0, 0, 1, 0),
            _affine(1, 0, 0, signed * 0.03, 1, 0),
            _affine(1, 0, signed * size / 30, 0, 1, 0),
            _affine(1, 0, 0, 0, 1, signed * size / 30),
        )
    )


def _random_crop(image: Image.Image) -> Image.Image:
    """A crop of 8 to 100 % of the area at the image's size, mirrored half of the time."""
    side = image.size[0]
    area, aspect = random.uniform(0.08, 1), np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
    width, height = (min(side, side * np.sqrt(area * factor)) for factor in (aspect, 1 / aspect))
    left, top = random.uniform(0, side - width), random.uniform(0, side - height)
    image = image.resize(image.size, Image.Resampling.BILINEAR, (left, top, left + width, top + height))
    return ImageOps.mirror(image) if random.random() < 0.5 else image


def _as_array(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float32) / 255


def augmix(image: Image.Image) -> np.ndarray:
    """A view of an image, `(H, W, 3)` in [0, 1]: a crop, mixed with three chains of operations on it."""
    image = _random_crop(image)
    weights = np.random.dirichlet([1.0] * 3)
    mixed = np.zeros((*image.size[::-1], 3), np.float32)
    for weight in weights:
        view = image
        for _ in range(random.randint(1, 3)):
            view = _random_operation(image.size[0])(view)
        mixed += weight * _as_array(view)
    share = np.random.beta(1.0, 1.0)
    return (share * _as_array(image) + (1 - share) * mixed).astype(np.float32)


def marginal_entropy(logits: Tensor) -> Tensor:
    """Entropy of the mean prediction over views, `(V, num_labels)` to a scalar."""
    mean = logits.log_softmax(-1).logsumexp(0) - np.log(len(logits))
    return -(mean.exp() * mean).sum()


def memo(model: nn.Module, pixels: Tensor) -> Tensor:
    """Logits `(B, num_labels)` for images `(B, 3, H, W)` in [0, 1], each after a step on its own views."""
    model = copy.deepcopy(model)
    source = copy.deepcopy(model.state_dict())
    logits = []
    for image in pixels:
        model.load_state_dict(source)
        optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE)
        pil = Image.fromarray((255 * image).round().byte().permute(1, 2, 0).numpy())
        views = torch.from_numpy(np.stack([augmix(pil) for _ in range(NUM_VIEWS)])).permute(0, 3, 1, 2)
        with norm_statistics("mixed", PRIOR_COUNT):
            marginal_entropy(model(normalize(views)).logits).backward()
            optimizer.step()
            with torch.no_grad():
                logits.append(model(normalize(image[None])).logits)
    return torch.cat(logits)
