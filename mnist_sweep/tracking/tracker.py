"""The interface through which a run is recorded."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from mnist_sweep.sweep.trial import Trial

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn


class Tracker:
    """Tracker interface. This default records nothing."""

    @contextmanager
    def run(self, tags: Mapping[str, str]) -> Iterator[None]:
        """Open the record of a run; close it with the right status when the block ends."""
        yield

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record the metrics of an epoch, or with the last epoch those of the whole run."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags by which the run can be found."""

    def log_dataset(self, name: str, sha256: str, source: str, sizes: Mapping[str, int]) -> None:
        """Record which data was used: its digest, where it came from, images in each split."""

    def log_artifacts(self, write: Callable[[Path], None]) -> None:
        """Keep the files that `write` puts into the folder it is given."""

    def log_model(
        self, model: "nn.Module", example: "NDArray[np.float32]", classes: Sequence[str]
    ) -> None:
        """Record a model on the CPU in eval mode; `example` is [2, C, H, W] in 0..1."""


def make_tracker(
    cfg: DictConfig, *, model: str, overrides: Sequence[str], directory: Path, trial: Trial
) -> Tracker:
    """Return the tracker that `cfg.tracking` asks for. It opens nothing before `Tracker.run`.

    Args:
        cfg: the whole configuration.
        model: the choice of the config group `model`; also the run's name, unless
            `tracking.run_name` sets another.
        overrides: the overrides that composed `cfg`.
        directory: the run's output directory.
        trial: the trial that the run belongs to.
    """
    if not cfg.tracking.enabled:
        return Tracker()
    from mnist_sweep.tracking.run import MlflowTracker  # imports mlflow

    tags = {"model": model, "overrides": " ".join(overrides), "directory": str(directory)}
    if trial.number is not None:
        tags |= {"sweep": str(trial.sweep), "trial": str(trial.number), **trial.tags}
    return MlflowTracker(cfg, run_name=cfg.tracking.run_name or model, tags=tags)
