"""Makes the tracker that a configuration asks for. Light: it imports mlflow only if that is needed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig

from mnist_sweep.common.configs import flatten
from mnist_sweep.sweep.trial import Trial
from mnist_sweep.tracking.tracker import Tracker


def make_tracker(
    cfg: DictConfig,
    *,
    name: str,
    choices: Mapping[str, str],
    overrides: Sequence[str],
    directory: Path,
    trial: Trial,
) -> Tracker:
    """Return the tracker that `cfg.tracking` asks for. It creates nothing before `Tracker.run`.

    The store of a single run is checked; see `check_at_start`. A sweep has checked that of its trials.

    Args:
        cfg: the whole configuration.
        name: the run's name, unless `tracking.run_name` sets another.
        choices: {config group: its choice}, recorded as parameters beside the settings of `cfg`.
        overrides: the overrides that composed `cfg`.
        directory: the run's output directory.
        trial: the trial that the run belongs to.

    Raises:
        UserError: the store of a single run cannot be opened or created, or is away.
    """
    if not cfg.tracking.enabled:
        return Tracker()
    from mnist_sweep.tracking.recorder import MlflowTracker  # imports mlflow

    if trial.number is None:
        from mnist_sweep.tracking.run import check_at_start, store_uri

        check_at_start(store_uri(cfg.tracking.uri, cfg.store), cfg.tracking.on_outage)
    tags = {"overrides": " ".join(overrides), "directory": str(directory)}
    if "model" in choices:
        tags["model"] = choices["model"]
    if trial.number is not None:
        tags |= {"sweep": str(trial.sweep), "trial": str(trial.number), **trial.tags}
    # what varies is a parameter even if `cfg` has no such key, as with the group `experiment`
    varied = {key.lstrip("+"): str(value) for key, value in trial.params.items()}
    params = {**varied, **flatten(cfg), **choices}
    return MlflowTracker(
        cfg,
        run_name=cfg.tracking.run_name or name,
        tags=tags,
        params=params,
        directory=directory,
    )
