"""What this application does around a run and before a sweep, as Hydra callbacks."""

import logging
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from mnist_sweep import config as configuration
from mnist_sweep.common.config_errors import explain
from mnist_sweep.common.errors import UserError, fail
from mnist_sweep.common.files import make_folder
from mnist_sweep.common.secrets import check_settings, check_url
from mnist_sweep.sweep import Sweep, SweepCallback
from mnist_sweep.sweep.hydra_internals import job_error

if TYPE_CHECKING:
    from mnist_sweep.sweep.callback import Study


log = logging.getLogger(__name__)

SHARED = ("store", "objective", "direction")  # by all trials of a sweep


class RefuseSecrets(Callback):
    """Ends a command whose settings spell out a secret, before Hydra records the settings."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        try:
            check_settings(config)
            check_url(config, "tracking.uri")
        except (UserError, OmegaConfBaseException) as error:  # a variable may be missing
            sys.exit(
                fail(explain(error))
            )  # Hydra turns other exceptions of a callback into warnings

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        self.on_run_start(config)


class DiscardFailedStart(Callback):
    """Makes the output directory of a run, and removes it if the run exits with code 2 before training."""

    directory: Path | None = None

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        try:
            directory = Path(config.hydra.run.dir).absolute()
        except OmegaConfBaseException:  # Hydra reports it next
            return
        self.directory = directory
        self.created = [p for p in (directory, *directory.parents) if not p.exists()]
        with suppress(OSError):  # Hydra itself fails next, with an error instead of a warning
            make_folder(directory)

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        if self.directory is None:
            return
        error = job_error(kwargs["job_return"])
        failed = isinstance(error, SystemExit) and error.code == 2
        left = {path.name for path in self.directory.glob("*")}
        if not failed or not left <= {".hydra", "run.log"}:
            return
        shutil.rmtree(self.directory / ".hydra", ignore_errors=True)
        (self.directory / "run.log").unlink(missing_ok=True)
        for path in self.created:  # the innermost first
            if path.exists() and not any(path.iterdir()):
                path.rmdir()


class PrepareSweep(SweepCallback):
    """Checks a sweep's configuration and fetches the data once for all trials."""

    def on_sweep_prepare(self, sweep: Sweep) -> None:
        if shared := [name for name in sweep.parameters if name in SHARED]:
            raise UserError(f"{shared[0]} cannot vary within a sweep; expected one value")
        for cfg in (sweep.example, *sweep.variations):
            configuration.check(cfg)
        if sweep.example.trainer.resume or "trainer.resume" in sweep.parameters:
            from mnist_sweep.training.run import check_resume  # imports torch

            for cfg in (sweep.example, *sweep.variations):
                check_resume(cfg)
        varies = any(name == "data" or name.startswith("data.") for name in sweep.parameters)
        if sweep.config.sweep.dry_run or varies:
            return
        from mnist_sweep.data.dataset import load_dataset
        from mnist_sweep.training.run import rehearse

        data = load_dataset(sweep.config.data)
        for cfg in _different_to_build(sweep):
            rehearse(cfg, data)
        used = data.name
        if used == sweep.config.data.name:
            return
        # the embedded stand-in has its own sizes
        replaced = ("data=", "data.val_size=")
        kept = [override for override in sweep.overrides if not override.startswith(replaced)]
        sweep.overrides = [*kept, f"data={used}"]


def _different_to_build(sweep: Sweep) -> list[DictConfig]:
    """The example, and the variations in which a run is built from other settings."""

    def parts(cfg: DictConfig) -> list[Any]:
        return [
            cfg.model,
            cfg.optimizer,
            cfg.scheduler,
            cfg.data.batch_size,
            cfg.trainer,
            cfg.device,
        ]

    first = parts(sweep.example)
    return [sweep.example, *(cfg for cfg in sweep.variations if parts(cfg) != first)]


class KeepBest(SweepCallback):
    """Deletes the models and checkpoints of all but the best `sweep.top_k` trials at the end.

    With several objectives it keeps those of the Pareto front.
    """

    def on_sweep_end(self, sweep: Sweep, study: "Study", error: BaseException | None) -> None:
        top_k, tracking = sweep.config.sweep.top_k, sweep.config.tracking
        if error is not None or top_k is None:
            return
        from mnist_sweep.sweep.results import best_trials
        from mnist_sweep.sweep.study import get_trials
        from mnist_sweep.training import checkpoint

        kept = {trial.number for trial in best_trials(study, top_k)}
        for trial in get_trials(study):
            if trial.number not in kept:
                # the study records directories too, but the database may be anybody's
                checkpoint.delete(sweep.directory / str(trial.number))
        if tracking.enabled:
            from mnist_sweep.tracking.queries import answers, delete_models_of_sweep
            from mnist_sweep.tracking.run import store_uri

            uri = store_uri(tracking.uri, sweep.config.store)
            if not answers(uri):
                log.warning("WARNING: MLflow is away: it keeps the models of all trials")
                return
            artifacts = Path(sweep.config.store) / "artifacts"
            delete_models_of_sweep(uri, tracking.experiment, sweep.name, kept, artifacts)
