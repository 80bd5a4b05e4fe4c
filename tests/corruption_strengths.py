"""Prints the strength of each corruption of ImageNet-C and CIFAR-10-C over that of the published code.

Strength is the root mean square difference from the photograph, averaged over photographs and draws. It needs what
`corruption_oracle.py` needs. Ratios of severities 1 to 5 stand in a row; those of random corruptions are uncertain by
a few percent, of frost, fog and elastic_transform more, unless there are many draws.

    python tests/corruption_strengths.py                              # scikit-learn's photographs, 224 and 32 px
    python tests/corruption_strengths.py --photos *.jpg --sides 32 --draws 100 --names fog,snow
"""

import argparse

import numpy as np
import torch
from corruption_oracle import CIFAR_10_C, published
from PIL import Image
from published_corruptions import DETERMINISTIC

from hf_it3.corruptions import SEVERITIES, corrupt


# Pixels differ from draw to draw, but hardly their mean; glass_blur takes the published code seconds on large images.
FEW = ("gaussian_noise", "shot_noise", "impulse_noise", "glass_blur")


def square(photo: Image.Image, side: int) -> np.ndarray:
    """The upper left square of a photograph, (side, side, 3) of 8 bits."""
    edge = min(photo.size)
    return np.asarray(photo.convert("RGB").crop((0, 0, edge, edge)).resize((side, side), Image.Resampling.LANCZOS))


def strength(before: np.ndarray, after: np.ndarray) -> float:
    """Root mean square difference of images (N, H, W, C), each from the same image (H, W, C), mean over images."""
    return float(np.sqrt(((after - before) ** 2).mean((1, 2, 3))).mean())


def ratio(function, name: str, severity: int, images: list[np.ndarray], draws: int) -> float:
    """Strength of our corruption over that of the published function."""
    ours, theirs = [], []
    for seed, image in enumerate(images):
        before = image.astype(float)
        after = [np.asarray(function(Image.fromarray(image), severity), float) for _ in range(draws)]
        theirs.append(strength(before, np.stack(after)))
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
        corrupted = corrupt(pixels.expand(draws, -1, -1, -1), f"imagenet-c/{name}", severity, seed)
        ours.append(strength(before, 255 * corrupted.permute(0, 2, 3, 1).double().numpy()))
    return float(np.mean(ours) / np.mean(theirs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", nargs="*", help="image files; default: the two photographs of scikit-learn")
    parser.add_argument("--sides", type=int, nargs="*", default=[224, 32], choices=[224, 32])
    parser.add_argument("--names", default=",".join(CIFAR_10_C))
    parser.add_argument("--draws", type=int, default=20, help="of random corruptions, per photograph")
    options = parser.parse_args()
    if options.photos:
        photos = [Image.open(path) for path in options.photos]
    else:
        from sklearn.datasets import load_sample_images

        photos = [Image.fromarray(array) for array in load_sample_images().images]
    np.random.seed(0)
    for side in options.sides:
        functions = published(side)
        images = [square(photo, side) for photo in photos]
        for name in options.names.split(","):
            draws = 1 if name in DETERMINISTIC else max(1, options.draws // 10) if name in FEW else options.draws
            if name in functions:
                ratios = [ratio(functions[name], name, severity, images, draws) for severity in SEVERITIES]
                print(f"{side:>3} px  {name:<18}", "  ".join(f"{one:.3f}" for one in ratios), flush=True)


if __name__ == "__main__":
    main()
