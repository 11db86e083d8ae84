"""Other programs that search the tables: plain Optuna and the stock Optuna sweeper of Hydra."""

import heapq
import tempfile
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import optuna
from hydra_plugins.hydra_optuna_sweeper.config import OptunaSweeperConf, TPESamplerConfig
from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper
from omegaconf import OmegaConf

from benchmarks.search_tables import Table


def plain_optuna(
    make_sampler: Callable[..., optuna.samplers.BaseSampler],
    table: Table,
    seed: int,
    n_trials: int,
    *,
    n_workers: int = 1,
) -> list[float]:
    """Search as `Study.optimize` does, in simulated time. Returns the losses in order of the starts.

    Args:
        n_workers: trials that run at once. The training times of the table decide which ends next.
    """
    study = optuna.create_study(sampler=make_sampler(seed=seed))
    running: list[tuple[float, int, float]] = []  # heap of end in seconds, number, loss
    now = 0.0
    for i in range(n_trials + n_workers):
        if running and (len(running) == n_workers or i >= n_trials):
            now, number, loss = heapq.heappop(running)
            study.tell(number, loss)
        if i < n_trials:
            trial = study.ask()
            loss, seconds = table.look_up(suggest(trial, table))
            heapq.heappush(running, (now + seconds, trial.number, loss))
    return [trial.values[0] for trial in study.trials]


def suggest(trial: optuna.Trial, table: Table) -> dict[str, Any]:
    return {
        name: trial.suggest_categorical(name, choices)
        if table.is_text(name)
        else trial.suggest_int(name, 0, len(choices) - 1)
        for name, choices in table.choices.items()
    }


class TableLauncher:
    """Looks the jobs of a Hydra sweep up instead of running them."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.losses: list[float] = []

    def launch(self, jobs: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
        points = [dict(override.split("=", 1) for override in overrides) for overrides in jobs]
        losses = [self.table.look_up(point)[0] for point in points]
        self.losses += losses
        return [SimpleNamespace(return_value=loss) for loss in losses]


def stock_sweeper(table: Table, seed: int, n_trials: int) -> list[float]:
    """Search with the stock sweeper and its defaults: TPE, and batches of two jobs."""
    settings = OmegaConf.structured(OptunaSweeperConf(sampler=TPESamplerConfig(seed=seed)))
    settings.n_trials = n_trials
    arguments = {key: settings[key] for key in settings if key not in ("_target_", "defaults")}
    sweeper = OptunaSweeper(**arguments).sweeper
    with tempfile.TemporaryDirectory() as folder:
        sweeper.config = OmegaConf.create({"hydra": {"sweep": {"dir": folder}}})
        sweeper.hydra_context, sweeper.launcher = SimpleNamespace(), TableLauncher(table)
        sweeper.sweep(table.overrides())
    return list(sweeper.launcher.losses)
