"""Predictions of several models."""

from mnist_sweep.analysis.predictions import _unique


def test_equal_names_get_their_position() -> None:
    assert _unique(["a", "b", "a"]) == ["a #1", "b", "a #3"]
