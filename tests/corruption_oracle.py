"""The published code of ImageNet-C, CIFAR-10-C and MNIST-C, where it is installed, to compare with.

ImageNet-C: the package imagenet-c (needs Wand and ImageMagick, scikit-image, opencv-python-headless), with the
photographs of the package imagecorruptions. Without Wand, imagecorruptions does, which has all but the published
elastic_transform. CIFAR-10-C is the same code with other parameters. MNIST-C: the file `corruptions.py` of
github.com/google-research/mnist-c, at the path in the environment variable MNIST_C_CODE. The code is of 2018 and 2019;
it is read and adapted to today's numpy and scikit-image, never imported. `pip install --no-deps --target DIR` of these
packages and PYTHONPATH keep them out of the environment.

    python tests/corruption_oracle.py            prints published_figures.json
    python tests/corruption_strengths.py         prints the strength of each corruption over the published one
"""

import ast
import importlib.util
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from published_corruptions import DETERMINISTIC, ONE_SETTING, digit, figures, picture


# Parameters of make_cifar_c.py, as its functions list them.
CIFAR_10_C = {
    "gaussian_noise": [0.04, 0.06, 0.08, 0.09, 0.10],
    "shot_noise": [500, 250, 100, 75, 50],
    "impulse_noise": [0.01, 0.02, 0.03, 0.05, 0.07],
    "defocus_blur": [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
    "glass_blur": [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
    "motion_blur": [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
    "zoom_blur": [np.arange(1, stop, 0.01).tolist() for stop in (1.06, 1.11, 1.16, 1.21, 1.26)],
    "snow": [
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ],
    "frost": [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],
    "fog": [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
    "brightness": [0.05, 0.1, 0.15, 0.2, 0.3],
    "contrast": [0.75, 0.5, 0.4, 0.3, 0.15],
    "elastic_transform": [
        (0, 0, 32 * 0.08),
        (32 * 0.05, 32 * 0.2, 32 * 0.07),
        (32 * 0.08, 32 * 0.06, 32 * 0.06),
        (32 * 0.1, 32 * 0.04, 32 * 0.05),
        (32 * 0.1, 32 * 0.03, 32 * 0.03),
    ],
    "pixelate": [0.95, 0.9, 0.85, 0.75, 0.65],
    "jpeg_compression": [80, 65, 58, 50, 40],
}
MNIST_C = (
    *("shot_noise", "impulse_noise", "glass_blur", "motion_blur", "shear", "scale", "rotate", "brightness"),
    *("translate", "stripe", "fog", "spatter", "dotted_line", "zigzag", "canny_edges"),
)
_REPLACEMENTS = (
    ("from pkg_resources import resource_filename", ""),
    ("scipy.ndimage.interpolation", "scipy.ndimage"),
    ("np.float_", "np.float64"),
    ("np.int(", "int("),
    ("np.fromstring", "np.frombuffer"),
    ("multichannel=True", "channel_axis=-1"),
    ("transform.AffineTransform(", "affine_transform_of_2019("),
)


def published(side: int) -> dict:
    """Functions (image of Pillow, severity) -> array in 0 to 255 of ImageNet-C (side 224) or CIFAR-10-C (32)."""
    for name in ("cv2", "skimage"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"the published code needs {name}")
    folder = _folder("imagecorruptions")
    if None in map(importlib.util.find_spec, ("wand", "imagenet_c")):
        return _imagecorruptions(side, folder)
    source = (_folder("imagenet_c") / "corruptions.py").read_text()
    if side == 32:
        source = source.replace("224", "32").replace("mapsize=256", "mapsize=32")
        source = source.replace(
            "frost = cv2.imread(filename)", "frost = cv2.resize(cv2.imread(filename), (0, 0), fx=0.2, fy=0.2)"
        )
    tree = ast.parse(source)
    if side == 32:
        for function in tree.body:
            if isinstance(function, ast.FunctionDef) and function.name in CIFAR_10_C:
                _replace_parameters(function)
    return _run(tree, folder)


def _imagecorruptions(side: int, folder: Path) -> dict:
    """The same from imagecorruptions, whose photographs of frost are larger and whose elastic_transform is another."""
    source = (folder / "corruptions.py").read_text()
    source = source.replace("scaling_factor *= 1.1", "scaling_factor *= 0.2" if side == 32 else "pass")
    source = source.replace("INTER_CUBIC", "INTER_LINEAR")
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if getattr(node, "name", None) != "elastic_transform"]
    if side == 32:
        for function in tree.body:
            if isinstance(function, ast.FunctionDef) and function.name in CIFAR_10_C:
                _replace_parameters(function)
    return _run(tree, folder)


def published_mnist_c() -> dict:
    """Functions (grey image of Pillow) -> array in 0 to 255 of MNIST-C, most also take a severity."""
    path = os.environ.get("MNIST_C_CODE")
    if path is None:
        pytest.skip("MNIST_C_CODE does not name the file corruptions.py of google-research/mnist-c")
    return _run(ast.parse(Path(path).read_text()), Path(path).parent)


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"the package {package} is not installed")
    return Path(spec.submodule_search_locations[0])


def _replace_parameters(function: ast.FunctionDef) -> None:
    for statement in function.body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "c":
            statement.value = ast.parse(f"{CIFAR_10_C[function.name]!r}[severity - 1]", mode="eval").body
            return
    raise AssertionError(f"{function.name} of the published code has no parameters c")


def affine_transform_of_2019(rotation=0.0, shear=0.0, scale=(1.0, 1.0), translation=(0.0, 0.0)):
    """scikit-image's AffineTransform with the meaning that shear had until version 0.18."""
    from skimage import transform

    (sx, sy), (tx, ty) = scale, translation
    rows = [
        [sx * math.cos(rotation), -sy * math.sin(rotation + shear), tx],
        [sx * math.sin(rotation), sy * math.cos(rotation + shear), ty],
        [0, 0, 1],
    ]
    return transform.AffineTransform(matrix=np.array(rows))


def _run(tree: ast.Module, folder: Path) -> dict:
    """The names that a module defines; statements that are no definitions (reading files, for one) are left out."""
    definitions = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign)
    source = ast.unparse(ast.Module([node for node in tree.body if isinstance(node, definitions)], []))
    for old, new in _REPLACEMENTS:
        source = source.replace(old, new)
    names = {
        "__name__": "published",
        "affine_transform_of_2019": affine_transform_of_2019,
        "resource_filename": lambda package, name: str(folder / name),
    }
    exec(compile(source, str(folder), "exec"), names)
    return names


def measure(function, image: np.ndarray, severity: int | None, count: int) -> list[float]:
    """Figures of the published code on an image of 8 bits, over `count` draws."""
    arguments = [Image.fromarray(image)] if severity is None else [Image.fromarray(image), severity]
    after = np.stack([np.asarray(function(*arguments), float) for _ in range(count)])
    return [round(figure, 3) for figure in figures(np.repeat(image[None], count, 0), after)]


def main() -> None:
    """Prints the figures of all published corruptions as JSON, by image side."""
    np.random.seed(0)
    tables: dict[str, dict] = {}
    # Noise and glass blur, which takes seconds on a large image, differ little from draw to draw there.
    few = dict.fromkeys(("glass_blur", "gaussian_noise", "shot_noise", "impulse_noise"), 5)
    for side in (224, 32):
        functions = published(side)
        counts = {**(few if side == 224 else {}), **dict.fromkeys(DETERMINISTIC, 1)}
        tables[str(side)] = {
            name: [
                measure(functions[name], picture(side), severity, counts.get(name, 200)) for severity in range(1, 6)
            ]
            for name in CIFAR_10_C
        }
    functions = published_mnist_c()
    tables["28"] = {
        name: [
            measure(functions[name], digit(), severity, 1 if name in DETERMINISTIC else 300)
            for severity in ([None] if name in ONE_SETTING else range(1, 6))
        ]
        for name in MNIST_C
    }
    lines = [
        f'"{side}": {{\n' + ",\n".join(f'"{name}": {json.dumps(rows)}' for name, rows in table.items()) + "\n}"
        for side, table in tables.items()
    ]
    print("{\n" + ",\n".join(lines) + "\n}")


if __name__ == "__main__":
    main()
