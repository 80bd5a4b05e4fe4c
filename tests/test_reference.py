"""Adaptation equals its plainest possible form: in every family of vision models, in every scope."""

import pytest
from families import FAMILIES
from reference import CASES, compare, is_close


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_equal_those_of_a_plain_loop_with_an_optimizer_that_is_not_fused(family):
    far = {}
    for case in CASES:
        difference, movement = compare(family, case)
        assert movement > 1e-3, f"nothing moves in {case!r}, so nothing is compared"
        if not is_close(difference, movement):
            far[case] = f"{difference:.1e} of {movement:.1e}"
    assert not far
