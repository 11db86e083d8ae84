"""The sweeper and the launcher that Hydra sees. Imported at every start, so nothing heavy here."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.errors import CompactHydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

import mnist_sweep.sweep.mlflow_plugin  # noqa: F401  registers hydra/callbacks=mlflow
from mnist_sweep.common.errors import UserError
from mnist_sweep.sweep.config import SweeperConfig
from mnist_sweep.sweep.hydra_internals import BasicLauncher

if TYPE_CHECKING:
    from mnist_sweep.sweep.coordinator import CoordinatorThread
    from mnist_sweep.sweep.worker import Job


class StudySweeper(Sweeper):
    """Runs grids and searches, see `mnist_sweep.sweep.driver`.

    Its settings stay in the configuration, see `mnist_sweep.sweep.config.settings_of`.
    """

    def __init__(self, **_: Any) -> None: ...

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context, self.task_function = hydra_context, task_function
        self.config = config

    def sweep(self, arguments: list[str]) -> Any:
        from mnist_sweep.sweep.driver import sweep

        assert self.hydra_context is not None
        assert self.config is not None
        try:
            return sweep(self.hydra_context, self.task_function, self.config, arguments)
        except UserError as error:  # Hydra prints its own errors without a traceback
            raise CompactHydraException(str(error)) from error
        except KeyboardInterrupt:  # Hydra would print a traceback
            raise SystemExit(130) from None


class ProcessLauncher(BasicLauncher):  # type: ignore[misc]
    """Starts one process for each worker on this machine, and restarts workers that die.

    A death must cost one trial and no more. joblib's pool kills all workers when one dies, and
    submitit's driver notices a death only when it reaches that job. The jobs of another sweeper run
    in this process, as with Hydra's basic launcher.
    """

    def __init__(self, restarts: int, start_method: str) -> None:
        super().__init__()
        self.restarts = restarts  # in a row, of a worker that dies within seconds
        self.start_method = start_method

    def run_workers(
        self,
        job: "Job",
        coordinator: "CoordinatorThread",
        environments: Sequence[Mapping[str, str]],
    ) -> None:
        """Run a worker of StudySweeper in each environment."""
        from mnist_sweep.sweep.worker_pool import run_workers

        run_workers(
            job,
            coordinator,
            environments,
            restarts=self.restarts,
            start_method=self.start_method,
            preload=job.settings.preload,
        )


# Of Hydra's groups. The schema of the short form is `/schema/sweep`.
_NODES: dict[str, Any] = {
    "sweeper/mnist_sweep": SweeperConfig,
    # for settings that stand elsewhere: `settings` is their key
    "sweeper/mnist_sweep_short": {
        "_target_": "mnist_sweep.sweep.plugin.StudySweeper",
        "settings": "sweep",
    },
    "sweeper/pruner/asha": {"_target_": "optuna.pruners.SuccessiveHalvingPruner"},
    "sweeper/pruner/hyperband": {"_target_": "optuna.pruners.HyperbandPruner"},
    "sweeper/pruner/median": {"_target_": "optuna.pruners.MedianPruner"},
    "launcher/mnist_sweep": {
        "_target_": "mnist_sweep.sweep.plugin.ProcessLauncher",
        "restarts": 3,
        # how to start a worker: "forkserver" or "spawn"
        "start_method": "forkserver" if hasattr(os, "fork") else "spawn",
    },
}
for _path, _node in _NODES.items():
    _group, _, _name = _path.rpartition("/")
    # replace: in a worker the store arrives with these entries before this module is imported
    ConfigStore.instance().store(
        group=f"hydra/{_group}",
        name=_name,
        node=_node,
        provider="mnist_sweep",
        replace=True,
    )
