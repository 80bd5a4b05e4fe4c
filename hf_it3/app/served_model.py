"""The model that the app serves: any saved one, or the tutorial's network, trained at the first start."""

import copy
import os
import shutil
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HOME
from PIL import Image
from torch import Tensor
from transformers import TrainerCallback

from ..data import DIGITS, load_digits
from ..demo import RECIPES, train_network
from ..evaluation.inputs import load_model
from ..evaluation.pixels import PixelCollator, pixel_collator
from ..it3.adapting_pipeline_it3 import AdaptingPipeline
from ..it3.configuration_it3 import SEGMENTATION
from ..it3.image_processing_it3 import IT3ImageProcessor
from ..it3.interface_it3 import IdempotentModel
from ..it3.registration import pipeline_of
from ..version import __version__
from .answers import clean_distances
from .sample_images import SampleImages


_DIGIT_NAMES = [str(digit) for digit in range(10)]


class _ShowProgress(TrainerCallback):
    def __init__(self, served: "ServedModel"):
        self.served = served

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.served.progress = state.global_step / max(state.max_steps, 1)


class ServedModel:
    """A model, test images to try it on, and the progress of its preparation.

    Args:
        name (`str`, *optional*): Hub name or path; by default the tutorial's network, trained on the bundled digits.
        dataset (`str`, *optional*): Hub name or path of the test images; by default the bundled digits, if the model's
            classes are the ten digits, else none.
        split (`str`, *optional*): of the data set; by default the first of `test`, `validation` and `train`.
        streaming (`bool`): read no more of the data set than is needed.
        config_name (`str`, *optional*): configuration of the data set.
        revision (`str`, *optional*): of the model on the Hub.
        trust_remote_code (`bool`): whether code that model and image processor bring along may run.
        cache_dir (`str` or `PathLike`, *optional*): where the trained network is kept for the next start.
        num_epochs (`int`, *optional*): of that training.

    Raises:
        OSError, ValueError, TypeError: for a model that cannot be loaded, or takes no label signal, and for test
            images that cannot be read.
    """

    def __init__(
        self,
        name: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        num_epochs: int | None = None,
        dataset: str | None = None,
        split: str | None = None,
        streaming: bool = False,
        config_name: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ):
        self.name = name
        self.cache_dir = Path(cache_dir or Path(HF_HOME) / "hf-it3" / f"digits-{__version__}")
        self.num_epochs = num_epochs
        self.progress = 0.0
        self.error: str | None = None
        self.finished = threading.Event()
        self.clean: list[float] = []
        self.model: IdempotentModel | None = None
        if name is not None:
            self._take(name, revision, trust_remote_code)
        dataset = dataset or (DIGITS if self.reads_digits else None)
        self.samples = (
            None
            if dataset is None
            else SampleImages.load(dataset, split, self.labels, streaming, config_name, self.segments)
        )

    @property
    def labels(self) -> list[str]:
        """Names of the model's classes."""
        return list(_DIGIT_NAMES) if self.model is None else list(self.model.config.id2label.values())

    @property
    def segments(self) -> bool:
        """Whether the model answers with a map of classes."""
        return self.model is not None and self.model.config.task == SEGMENTATION

    @property
    def reads_digits(self) -> bool:
        """Whether the model's classes are the ten digits."""
        return self.labels in (_DIGIT_NAMES, [f"LABEL_{digit}" for digit in range(10)])

    @property
    def title(self) -> str:
        return self.name or "the network of the MNIST tutorial, trained on scikit-learn's digits"

    def prepare(self) -> None:
        """Trains or loads the model, unless it is there already; stores an error in `error`."""
        try:
            if self.model is None:
                self._take(str(self._train_or_find()))
            if self.samples is not None:
                self.clean = clean_distances(self.classifier(), self.read(self.samples.images))
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            self.error = " ".join(str(error).split())
        finally:
            self.progress = 1.0
            self.finished.set()

    def start(self) -> threading.Thread:
        """Prepares the model in a thread of its own, so that the page can show the progress."""
        thread = threading.Thread(target=self.prepare, name="prepare-model", daemon=True)
        thread.start()
        return thread

    def classifier(self) -> AdaptingPipeline:
        """A pipeline for one visitor: the weights are shared, what adaptation does with them is not.

        It takes images of the model's size, since corruptions come after resizing, as in evaluations.
        """
        processor = copy.deepcopy(self.image_processor)
        for name in ("do_resize", "do_center_crop"):
            if hasattr(processor, name):
                setattr(processor, name, False)
        return pipeline_of(self.model)(model=self.model, image_processor=processor)

    def read(self, images: Sequence[Image.Image]) -> Tensor:
        """Images as the model sees them before normalisation, `(N, C, H, W)` in [0, 1]."""
        return PixelCollator(self.image_processor)([{"image": image} for image in images])["pixel_values"]

    def read_truths(self, images: Sequence[Image.Image], truths: Sequence[Any] | None) -> Any:
        """What images are known to be, as answers are compared with: names of classes as they are, maps of classes as
        evaluations read them, `(N, H, W)` at the model's size."""
        if truths is None or self.model is None or not self.segments:
            return truths
        rows = [{"image": image, "label": classes} for image, classes in zip(images, truths, strict=True)]
        return pixel_collator(self.model.config, self.image_processor, "image", "label")(rows)["labels"]

    def _take(self, name: str, revision: str | None = None, trust_remote_code: bool = False) -> None:
        loaded = load_model(name, revision=revision, trust_remote_code=trust_remote_code)
        self.image_processor = loaded.image_processor
        self.model = loaded.model.eval()

    def _train_or_find(self) -> Path:
        if (self.cache_dir / "config.json").is_file():
            return self.cache_dir
        recipe = RECIPES[DIGITS]
        processor = IT3ImageProcessor(num_channels=1, image_mean=[recipe.mean], image_std=[recipe.std])
        self.cache_dir.parent.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix=".training-", dir=self.cache_dir.parent))
        try:
            train_network(
                load_digits()["train"],
                processor,
                _DIGIT_NAMES,
                directory,
                0,
                recipe,
                self.num_epochs,
                [_ShowProgress(self)],
            )
            # In one step, so that no other start ever finds half a model.
            directory.rename(self.cache_dir)
        except OSError:
            shutil.rmtree(directory, ignore_errors=True)
            if not (self.cache_dir / "config.json").is_file():
                raise
        return self.cache_dir
