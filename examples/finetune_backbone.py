# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-it3"]
#
# [tool.uv.sources]
# hf-it3 = { path = "..", editable = true }
# ///
"""Turns a trained image classifier into one that adapts itself at test time.

    python examples/finetune_backbone.py --backbone google/vit-base-patch16-224 --dataset path/to/folder_of_images
    python examples/finetune_backbone.py --backbone microsoft/resnet-18 --dataset food101 --train_backbone

The classifier is wrapped with its weights, so it predicts what it predicted before; a short fine-tuning then teaches
it the label signal. Only the label embedder and the normalisation layers learn, unless --train_backbone is given. The
data set should be the one that the classifier was trained on; with the same classes, its head is kept.
"""

import argparse
import sys

from datasets import ClassLabel
from transformers import set_seed

from hf_it3 import IT3ForImageClassification, IT3Trainer, IT3TrainingArguments, TestTimeAdapter
from hf_it3.data import first_rows, load_images


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True, help="Hub name or local path of an image classifier")
    parser.add_argument("--dataset", required=True, help="folder of images, Hub name or local data set")
    parser.add_argument("--output_dir", default="runs/finetuned")
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--max_steps", type=int, default=-1)
    parser.add_argument("--batch_size", type=int, default=32, help="of training")
    parser.add_argument("--max_eval_images", type=int, default=500, help="measure on a random sample of this size")
    parser.add_argument("--learning_rate", type=float, default=1e-4, help="of the backbone's parameters")
    parser.add_argument("--embedder_learning_rate", type=float, default=1e-3, help="of the new label embedder")
    parser.add_argument("--train_backbone", action="store_true", help="train all of the backbone")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    set_seed(args.seed)
    splits = load_images(args.dataset)
    if "train" not in splits:
        raise ValueError(f"{args.dataset} has no split 'train' to learn from, only {', '.join(splits)}")
    train = splits["train"]
    test = next((splits[name] for name in ("validation", "test") if name in splits), None)
    # Random ones: folders of images are sorted by class.
    test = None if test is None else first_rows(test.shuffle(seed=args.seed), args.max_eval_images)
    known = first_rows(train.shuffle(seed=args.seed), args.max_eval_images)
    label = next((feature for feature in train.features.values() if isinstance(feature, ClassLabel)), None)
    labels = {} if label is None else {"id2label": dict(enumerate(label.names))}
    model = IT3ForImageClassification.from_backbone(args.backbone, **labels)
    print(f"the label signal enters behind {model.config.injection_layer}")
    arguments = IT3TrainingArguments(
        args.output_dir,
        num_train_epochs=args.epochs,
        max_steps=args.max_steps,
        per_device_train_batch_size=args.batch_size,
        # Nothing is learnt in evaluation, so that a batch takes little memory.
        per_device_eval_batch_size=max(args.batch_size, 32),
        learning_rate=args.learning_rate,
        embedder_learning_rate=args.embedder_learning_rate,
        freeze_backbone=not args.train_backbone,
        # Measured below, when the weights are safe.
        reference_images=0,
        save_strategy="no",
        seed=args.seed,
    )
    trainer = IT3Trainer(model, arguments, train_dataset=train, eval_dataset=test)
    if test is not None:
        print("before:", f"accuracy {trainer.evaluate()['eval_accuracy']:.3f}")
    trainer.train()
    trainer.save_model()
    print(f"saved to {args.output_dir}")
    trainer.measure_reference_distance(known)
    trainer.save_model()
    if test is not None:
        print("after:", f"accuracy {trainer.evaluate()['eval_accuracy']:.3f}")
    images = trainer.data_collator([known[index] for index in range(min(64, len(known)))])["pixel_values"]
    output = TestTimeAdapter(IT3ForImageClassification.from_pretrained(args.output_dir))(images)
    print(f"{int(output.adapted.sum())} of {len(output.logits)} training images look shifted")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"finetune_backbone.py: {' '.join(str(error).split())}")
