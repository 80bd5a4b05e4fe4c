"""Test-time training written down once more, as plainly as possible: a copy, a loop, an optimizer."""

import copy

import torch
from torch.nn import functional as F

from hf_it3.it3.augmentation_it3 import Augmentation
from hf_it3.it3.backbone_defaults_it3 import resolve_defaults


def entropy(p):
    return torch.special.entr(p).sum(-1)


def mean_over_pixels(y):
    return y.movedim(1, -1).reshape(-1, y.shape[1]).mean(0)


DISTANCES = {
    "neg_dot": lambda y1, y0: -torch.einsum("bc...,bc...->b...", y1, y0),
    "mse": lambda y1, y0: F.mse_loss(y0, y1, reduction="none").mean(1),
    "kl": lambda y1, y0: F.kl_div(y0.log(), y1, reduction="none").sum(1),
    "cross_entropy": lambda y1, y0: F.cross_entropy(y0.log(), y1, reduction="none"),
    "js": lambda y1, y0: (
        F.kl_div(((y1 + y0) / 2).log(), y1, reduction="none").sum(1) / 2
        + F.kl_div(((y1 + y0) / 2).log(), y0, reduction="none").sum(1) / 2
    ),
    "entropy": lambda y1, y0: entropy(y0),
}


class NaiveAdaptation:
    """What one set of adapted weights goes through; call it with batches, they continue where the last one ended.

    The model, in eval mode, stays as it is.
    """

    def __init__(self, model, **settings):
        self.config = resolve_defaults(model.config.adaptation.replace(**settings), model)
        self.source = model
        self.model, self.average = copy.deepcopy(model), copy.deepcopy(model)
        self.parameters = [value for name, value in self.model.named_parameters() if not name.startswith("embedder.")]
        distance = self.config.distance or model.config.distance
        self.distance = DISTANCES.get(distance, distance)
        self.start()

    def start(self):
        """Back to the model's weights, with an optimizer that knows nothing."""
        for adapted in (self.model, self.average):
            adapted.load_state_dict(self.source.state_dict())
        kind = torch.optim.Adam if self.config.optimizer == "adam" else torch.optim.SGD
        self.optimizer = kind(self.parameters, lr=self.config.learning_rate)
        self.losses = []

    def __call__(self, images, num_steps=None, diversity_weight=None):
        config = self.config
        weight = config.diversity_weight if diversity_weight is None else diversity_weight
        for _ in range(config.num_steps if num_steps is None else num_steps):
            y0 = self.model(images).logits.softmax(1)
            loss = self.distance(self.second_prediction(images, y0), y0).mean() - weight * entropy(
                mean_over_pixels(y0)
            )
            self.losses.append(loss.item())
            self.optimizer.zero_grad()
            loss.backward()
            if config.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(self.parameters, config.max_grad_norm)
            self.optimizer.step()
            self.move_average()
        with torch.no_grad():
            return self.model(images).logits

    def second_prediction(self, images, y0):
        anchor = self.config.effective_anchor
        if anchor == "self":
            return self.model(images, label_signal=y0).logits.softmax(1)
        with torch.no_grad():
            if anchor == "ema":
                return self.average(images, label_signal=y0).logits.softmax(1)
            source_y0 = self.source(images).logits.softmax(1)
            return self.source(images, label_signal=source_y0).logits.softmax(1)

    @torch.no_grad()
    def move_average(self):
        for average, value in zip(self.average.parameters(), self.model.parameters(), strict=True):
            average.copy_(self.config.ema_decay * average + (1 - self.config.ema_decay) * value)


def mean_over_copies(model, images, count, kinds=None):
    """Logits `(B, num_labels)` of the mean prediction of a model over copies of each image, up to a constant."""
    copies = Augmentation(count, kinds).apply(images).unbind(1)
    with torch.no_grad():
        return torch.stack([model(one).logits.softmax(1) for one in copies]).mean(0).log()


def image_by_image(model, images, **settings):
    """Logits `(B, num_labels)` where every image had weights of its own, from augmentations if the settings say."""
    config = resolve_defaults(model.config.adaptation.replace(**settings), model)
    naive = NaiveAdaptation(model, **settings)
    logits = []
    for image in images:
        naive.start()
        averages = config.scope == "average"
        views = Augmentation(config.augmentations).apply(image[None])[0] if averages else image[None]
        steps = config.augmentation_steps if averages else config.num_steps
        answers = naive(views, num_steps=steps, diversity_weight=0)
        logits.append(answers[0] if len(answers) == 1 else answers.softmax(1).mean(0).log())
    return torch.stack(logits)
