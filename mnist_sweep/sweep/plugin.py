"""What Hydra sees: the sweeper and the launcher. Imported at every start, so nothing heavy here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class SweeperConf:
    """Empty: the settings of a sweep are the node `sweep`, see `mnist_sweep.config.SweepConfig`."""

    _target_: str = "mnist_sweep.sweep.plugin.StudySweeper"


@dataclass
class LauncherConf:
    _target_: str = "mnist_sweep.sweep.plugin.ProcessLauncher"
    restarts: int = 3  # of a worker that died, in a row without a second of life


class StudySweeper(Sweeper):
    """Grids and searches alike, see `mnist_sweep.sweep.driver`."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context, self.task_function = hydra_context, task_function
        self.config = config

    def sweep(self, arguments: list[str]) -> Any:
        from mnist_sweep.sweep.driver import sweep

        assert self.hydra_context is not None
        assert self.config is not None
        return sweep(self.hydra_context, self.task_function, self.config, arguments)


class ProcessLauncher(Launcher):
    """One process a job on this machine, each started again when it dies.

    Our own because a death must cost one trial and no more: joblib's pool kills every other
    worker when one dies, and submitit's driver learns of a death only when it comes to that job.
    """

    def __init__(self, restarts: int) -> None:
        self.restarts = restarts

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context, self.task_function = hydra_context, task_function
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from mnist_sweep.sweep.processes import run_all

        job = (self.hydra_context, self.task_function, self.config)
        return run_all(job, job_overrides, initial_job_idx, self.restarts)


_store = ConfigStore.instance()
_store.store(group="hydra/sweeper", name="mnist_sweep", node=SweeperConf, provider="mnist_sweep")
_store.store(group="hydra/launcher", name="mnist_sweep", node=LauncherConf, provider="mnist_sweep")
