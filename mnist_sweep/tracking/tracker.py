"""The interface through which a run is recorded."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

CONFUSION_MATRIX = "confusion_matrix"  # key of a picture


class Tracker:
    """Tracker interface. This default records nothing."""

    @contextmanager
    def run(self, tags: Mapping[str, str]) -> Iterator[None]:
        """Open the record of a run; close it with the right status when the block ends."""
        yield

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record the metrics of an epoch (a step from 1 on), or at step 0 those of the whole run."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags by which the run can be found."""

    def log_dataset(self, name: str, sha256: str, source: str, sizes: Mapping[str, int]) -> None:
        """Record which data was used: its digest, where it came from, images in each split."""

    def log_artifacts(self, write: Callable[[Path], None]) -> None:
        """Keep the files that `write` puts into the folder it is given."""

    def log_image(self, key: str, image: "NDArray[np.uint8]") -> None:
        """Record a picture [H, W, 3] that MLflow's UI shows beside those of other runs."""

    def log_model(
        self,
        model: "nn.Module",
        example: "NDArray[np.float32]",
        classes: Sequence[str],
        write: Callable[[Path], None],
    ) -> None:
        """Record a model on the CPU in eval mode; `example` is [2, C, H, W] in 0..1.

        `write` puts the files into a folder from which the model is rebuilt.
        """
