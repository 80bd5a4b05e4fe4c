"""Compares what two processes computed."""

import pytest


def assert_alike(ours: object, theirs: object, where: str = "it") -> None:
    """Asserts that nested values are equal but for the last digits of numbers.

    Those differ between processes: weights lie at other addresses, or another number of threads adds them up.
    """
    if isinstance(ours, dict) and isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for name, value in ours.items():
            assert_alike(value, theirs[name], f"{where}.{name}")
    elif isinstance(ours, list) and isinstance(theirs, list):
        assert len(ours) == len(theirs), where
        for position, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_alike(one, other, f"{where}[{position}]")
    elif isinstance(ours, float):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5), where
    else:
        assert ours == theirs, where
