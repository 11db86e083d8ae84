"""Predictions of several models."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_sweep.analysis.predictions import _read, _unique
from mnist_sweep.common.errors import UserError
from tests.helpers.hostile import Marked

GOOD: dict[str, Any] = {
    "val_probabilities": np.ones((2, 3)),
    "val_labels": np.ones(2),
    "val_indices": np.ones(2),
    "test_probabilities": np.ones((4, 3)),
    "test_labels": np.ones(4),
}


def test_equal_names_get_their_position() -> None:
    assert _unique(["a", "b", "a"]) == ["a #1", "b", "a #3"]


@pytest.mark.parametrize(
    "change", [{"val_labels": np.ones(3)}, {"test_probabilities": np.ones(4)}, {"val_indices": 1}]
)
def test_predictions_of_other_shapes_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "predictions.npz"
    np.savez(path, **GOOD)
    assert _read(path, "r").keys() == GOOD.keys()
    np.savez(path, **{**GOOD, **change})
    with pytest.raises(UserError, match=r"run r: its predictions\.npz is damaged"):
        _read(path, "r")


def test_damaged_or_pickled_predictions_are_refused(tmp_path: Path) -> None:
    path, mark = tmp_path / "predictions.npz", tmp_path / "ran"
    np.savez(path, **{**GOOD, "val_labels": np.array([Marked(mark)], dtype=object)})
    pickled = path.read_bytes()
    for content in (b"", b"PK\3\4", pickled[:500], pickled):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"run r: its predictions\.npz is damaged"):
            _read(path, "r")
    assert not mark.exists()
