"""Steps with gradients that are handed over, against torch's own optimizers."""

import pytest
import torch

from hf_it3.it3.optimizers_it3 import forget_history, make_optimizer, take_step


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_steps_equal_those_of_torchs_optimizer_also_where_a_parameter_has_no_gradient(name):
    values = [torch.randn(3, 4, dtype=torch.float64), torch.randn(5, dtype=torch.float64)]
    ours, theirs = ([value.clone().requires_grad_() for value in values] for _ in range(2))
    optimizer = make_optimizer(name, 0.1, ours)
    plain = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[name](theirs, lr=0.1)
    for missing in (1, None, 0, None):
        gradients = [None if index == missing else torch.randn_like(value) for index, value in enumerate(values)]
        take_step(optimizer, ours, gradients)
        for value, gradient in zip(theirs, gradients, strict=True):
            value.grad = gradient
        plain.step()
        for own, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-12, atol=1e-12)
    assert all(value.grad is None for value in ours)


def test_an_emptied_optimizer_steps_as_a_new_one():
    value, gradient = torch.zeros(4, requires_grad=True), torch.tensor([1.0, -2.0, 3.0, 0.5])
    optimizer = make_optimizer("adam", 0.1, [value])
    for _ in range(3):
        take_step(optimizer, [value], [gradient])
    forget_history(optimizer)
    before = value.detach().clone()
    take_step(optimizer, [value], [gradient.flip(0)])
    # Adam's first step has the length of the learning rate.
    torch.testing.assert_close((value - before).abs(), torch.full((4,), 0.1))
