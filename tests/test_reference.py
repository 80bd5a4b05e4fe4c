"""Adaptation equals its plainest possible form: in every family of vision models, in every scope."""

import pytest
from families import FAMILIES
from reference import CASES, compare, is_close


# One of each kind: plain and inverted convolutions, attention over tokens and over windows, and both.
KINDS = ("resnet", "convnext", "mobilenet_v2", "vit", "swin", "segformer")
QUICK = ("batch, averaged", "image", "average")


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_equal_those_of_a_plain_loop_with_an_optimizer_that_is_not_fused(family):
    check(family, CASES if family in KINDS else QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in KINDS])
def test_so_do_they_in_every_other_case(family):
    check(family, [case for case in CASES if case not in QUICK])


def check(family, cases):
    far = {}
    for case in cases:
        difference, movement = compare(family, case)
        assert movement > 1e-3, f"nothing moves in {case!r}, so nothing is compared"
        if not is_close(difference, movement):
            far[case] = f"{difference:.1e} of {movement:.1e}"
    assert not far
