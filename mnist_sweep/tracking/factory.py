"""Makes the tracker that a configuration asks for. Light: it imports mlflow only if that is needed."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from mnist_sweep.sweep.trial import Trial
from mnist_sweep.tracking.tracker import Tracker


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
