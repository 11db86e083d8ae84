"""What Hydra sees: the sweeper and the launcher. Imported at every start, so nothing heavy here."""

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


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


class ProcessLauncher(BasicLauncher):  # type: ignore[misc]
    """One process a worker on this machine, each started again when it dies.

    Our own because a death must cost one trial and no more: joblib's pool kills every other
    worker when one dies, and submitit's driver learns of a death only when it comes to that job.
    What is no worker of ours, a job of another sweeper, runs here and now as Hydra's default does it.
    """

    def __init__(self, restarts: int) -> None:
        super().__init__()
        self.restarts = restarts  # of a worker that died, in a row without a second of life

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        if not hasattr(self.task_function, "mark_interrupted"):
            return super().launch(job_overrides, initial_job_idx)  # type: ignore[no-any-return]
        from mnist_sweep.sweep.worker_pool import run_all

        job: Any = (self.hydra_context, self.task_function, self.config)
        run_all(job, job_overrides, initial_job_idx, self.restarts)
        return []


# The settings of a sweep are the node `sweep`, see `mnist_sweep.config.SweepConfig`.
for _kind, _node in {
    "sweeper": {"_target_": "mnist_sweep.sweep.plugin.StudySweeper"},
    "launcher": {"_target_": "mnist_sweep.sweep.plugin.ProcessLauncher", "restarts": 3},
}.items():
    ConfigStore.instance().store(
        group=f"hydra/{_kind}", name="mnist_sweep", node=_node, provider="mnist_sweep"
    )
