"""The arguments that `IT3TrainingArguments` adds to those of transformers; importing them takes no other package."""

from dataclasses import dataclass, field


TRAINED_PARTS = ("all", "norm", "embedder")


@dataclass(repr=False, eq=False)
class OwnArguments:
    """What idempotent models need beyond `TrainingArguments`."""

    # Parameters that control what is trained
    train: str = field(
        default="all",
        metadata={
            "help": "What is trained: 'all'; 'norm', the normalisation layers and the label embedder; or 'embedder', "
            "the label embedder alone, after which the classifier answers as before, bit for bit.",
            "choices": list(TRAINED_PARTS),
        },
    )
    freeze_backbone: bool = field(default=False, metadata={"help": "The same as train='norm'."})
    embedder_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of the label embedder; by default that of the rest, and 3e-3 where it is trained "
            "alone and no learning_rate is given."
        },
    )

    # Parameters that control evaluation and what follows training
    eval_adapted: bool = field(
        default=False, metadata={"help": "Evaluate with test-time adaptation as well, as eval_adapted_*."}
    )
    reference_images: int = field(
        default=5000,
        metadata={
            "help": "Clean images that are measured for the gate and for alignment, after training and before each "
            "evaluation with adaptation; 0 skips it."
        },
    )

    # Parameters that control the data
    image_column: str | None = field(
        default=None, metadata={"help": "Column of the images; by default 'image', 'img' or 'pixel_values'."}
    )
    label_column: str | None = field(
        default=None, metadata={"help": "Column of the labels; by default 'label', 'labels' or 'fine_label'."}
    )
