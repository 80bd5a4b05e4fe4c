# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-it3[demo]"]
#
# [tool.uv.sources]
# hf-it3 = { path = "..", editable = true }
# ///
"""Adapts a model to a stream of images, as they come, and keeps or pushes what it has become.

With scope "stream" the adapted weights live on from batch to batch. Here a camera sees digits that grow brighter; the
model of the source stays as it was; the adapted one is saved, and pushed if you wish: as a delta, only what changed
and where it began, if the source came from the Hub.

    python examples/stream.py                                        # trains a small model first: a minute
    python examples/stream.py --model DIR --push user/my-camera      # with a model of yours; needs a token

It prints the accuracy of each part of the stream, of the source model and of the stream's, and what it saved.
"""

import argparse
import sys
from pathlib import Path

import torch
from transformers import pipeline, set_seed

from hf_it3 import IT3ForImageClassification, IT3Trainer, IT3TrainingArguments, TestTimeAdapter
from hf_it3.data import load_images
from hf_it3.evaluation.pixels import Normalization, PixelCollator


def train(dataset, directory: Path, num_epochs: int) -> None:
    """Trains and saves the tutorial's network; mnist.py explains each line."""
    from hf_it3 import IT3CNNConfig, IT3Config, IT3ImageProcessor

    processor = IT3ImageProcessor(num_channels=1, image_mean=[0.31], image_std=[0.38])
    names = {digit: str(digit) for digit in range(10)}
    model = IT3ForImageClassification(IT3Config(backbone_config=IT3CNNConfig(id2label=names), injection_layer="conv1"))
    arguments = IT3TrainingArguments(
        str(directory),
        num_train_epochs=num_epochs,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        save_strategy="no",
        logging_strategy="no",
    )
    trainer = IT3Trainer(model, arguments, train_dataset=dataset, processing_class=processor)
    trainer.train()
    trainer.save_model()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="Hub name or path; by default one is trained on the bundled digits")
    parser.add_argument("--num_epochs", type=int, default=10, help="of that training")
    parser.add_argument("--parts", type=int, default=4, help="parts of the stream, each brighter than the one before")
    parser.add_argument("--batch_size", type=int, default=25)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/stream"))
    parser.add_argument("--push", metavar="USER/NAME", help="push the adapted model to the Hub")
    options = parser.parse_args()

    set_seed(0)
    digits = load_images("digits")
    source_dir = options.model or options.output_dir / "source"
    if options.model is None:
        train(digits["train"], source_dir, options.num_epochs)

    # The pipeline brings model and image processor; the adapter is what remembers.
    classifier = pipeline("it3-image-classification", model=str(source_dir), scope="stream")
    adapter: TestTimeAdapter = classifier.adapter()
    batch = PixelCollator(classifier.image_processor)(list(digits["test"]))
    normalize = Normalization(classifier.image_processor)
    parts = zip(batch["pixel_values"].chunk(options.parts), batch["labels"].chunk(options.parts), strict=True)

    print(f"{'brightness':>10}{'source':>9}{'stream':>9}")
    for part, (pixels, labels) in enumerate(parts):
        brightness = 0.5 * part / max(options.parts - 1, 1)
        images = normalize((pixels + brightness).clamp(0, 1))
        correct = torch.zeros(2)
        for chunk, truth in zip(images.split(options.batch_size), labels.split(options.batch_size), strict=True):
            output = adapter(chunk)
            for column, logits in enumerate((output.initial_logits, output.logits)):
                correct[column] += (logits.argmax(-1) == truth).sum()
        source, stream = correct / len(labels)
        print(f"{brightness:>+10.2f}{source:>9.1%}{stream:>9.1%}")

    # state_dict() is for going on tomorrow where the stream stands today: optimizer, anchor and gate included.
    options.output_dir.mkdir(parents=True, exist_ok=True)
    torch.save(adapter.state_dict(), options.output_dir / "stream.pt")
    adapted = adapter.adapted_model()
    print(f"the stream took {adapted.config.base_model['num_steps']} steps")
    adapted_dir = options.output_dir / "adapted"
    adapted.save_pretrained(adapted_dir)
    classifier.image_processor.save_pretrained(adapted_dir)
    reloaded = IT3ForImageClassification.from_pretrained(adapted_dir).eval()
    with torch.no_grad():
        right = (reloaded(images).logits.argmax(-1) == labels).double().mean()
    print(f"saved it in {adapted_dir}; loaded again, it has {right:.1%} of the last part right without adapting")
    if options.push:
        # A model that came from the Hub is pushed as a delta: what changed, and the commit that it started from.
        adapted.push_to_hub(
            options.push,
            image_processor=classifier.image_processor,
            delta=adapted.config.base_model["revision"] is not None,
            data_description="digits that grow brighter",
        )
        print(f"pushed to {options.push}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"stream.py: {' '.join(str(error).split())}")
