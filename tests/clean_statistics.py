"""Lets a model measure clean images as training does at its end."""

import torch

from hf_it3.it3.alignment_it3 import collected_statistics
from hf_it3.it3.shift_reference_it3 import Observation
from hf_it3.it3.shift_test_it3 import observe
from hf_it3.training.clean_images import store_reference


def with_clean_statistics(model, *batches: torch.Tensor):
    """The model, in eval mode, after it has seen batches of clean images."""
    sums, seen = {}, []
    with collected_statistics(sums):
        for batch in batches:
            seen.append(observe(model.eval(), batch))
    store_reference(model, Observation.join(seen), [sums])
    return model
