"""The tutorial's network: its pooling, and its checks."""

import pytest
import torch
from torch.nn import functional as F

from hf_it3 import IT3CNNConfig, IT3CNNForImageClassification
from hf_it3.it3.pooling_it3 import max_pool_2x2


@pytest.mark.parametrize("shape", [(3, 2, 8, 8), (2, 3, 7, 9), (60, 10, 12, 12), (60, 20, 9, 7)], ids=str)
@pytest.mark.parametrize("with_ties", [False, True])
def test_pooling_is_max_pooling_with_its_gradient(shape, with_ties):
    features = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    features = features.round() if with_ties else features
    ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
    pooled, expected = max_pool_2x2(ours), F.max_pool2d(theirs, 2)
    assert torch.equal(pooled, expected)
    gradient = torch.randn_like(expected)
    pooled.backward(gradient)
    expected.backward(gradient)
    assert torch.equal(ours.grad, theirs.grad)
    assert torch.equal(max_pool_2x2(features), expected)


def test_pooling_has_gradients_of_single_images_under_vmap():
    features = torch.randn(4, 1, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = torch.func.vmap(torch.func.grad(lambda image: max_pool_2x2(image).square().sum()))(features)
    theirs = torch.func.vmap(torch.func.grad(lambda image: F.max_pool2d(image, 2).square().sum()))(features)
    assert torch.equal(ours, theirs)


def test_images_of_another_shape_are_refused_with_both_shapes():
    model = IT3CNNForImageClassification(IT3CNNConfig())
    with pytest.raises(ValueError, match=r"\(batch, 1, 28, 28\), got \(2, 3, 28, 28\)"):
        model(torch.zeros(2, 3, 28, 28))


def test_an_image_too_small_to_pool_twice_is_refused():
    with pytest.raises(ValueError, match="image_size=8 is too small"):
        IT3CNNConfig(image_size=8)
