"""Settings of a sweep."""

from dataclasses import field
from typing import Any, Literal

from mnist_sweep.common.schema import schema

# Keys and config groups that configure the sweep itself, not its trials.
OWN_KEYS = ("sweep", "search", "pruner", "space")


@schema
class SweepConfig:
    """Settings of a sweep, that is of a command with `-m`."""

    name: str | None = None  # of the study and its directory; null: a new name made of the time
    n_trials: int | None = (
        None  # COMPLETE + PRUNED trials of the whole study; null: the grid, or 30
    )
    n_jobs: int | None = None  # workers; null: 1 on the CPU, otherwise GPUs x trials_per_gpu
    trials_per_gpu: int = 1
    # parameter -> choice(), range() or interval()
    space: dict[str, Any] = field(default_factory=dict)
    # conditional parameter -> {other parameter: values with which it exists}
    when: dict[str, Any] = field(default_factory=dict)
    sampler: dict[str, Any] | None = None  # a class of optuna.samplers; null: the grid, or TPE
    pruner: dict[str, Any] | None = None  # a class of optuna.pruners; null: no pruning
    objectives: dict[str, str] | None = (
        None  # metric -> direction, if there are several; no pruning
    )
    seed: int = "${seed}"  # type: ignore[assignment]  # of the sampler
    duplicates: Literal["allow", "skip"] = "allow"  # points that were tried before
    max_failure_rate: float = 1.0  # failed trials / n_trials above which the sweep stops
    retries: int = 2  # of a trial whose process died
    grace_s: int = 60  # heartbeat timeout, in seconds
    trial_timeout_s: float | None = None  # seconds after which a trial is stopped and FAILs
    storage: str | None = None  # database URL without a password; null: SQLite under `store`
    # let a sampler that keeps pickles in `storage` (CMA-ES) run code from it, as long as only people you
    # trust can write to it; the default storage needs no trust
    trust: bool = False
    top_k: int | None = None  # keep only the models of the best k trials; null: keep all
    extend: bool = False  # accept another search space under the same name
    dry_run: bool = False  # preview the trials, run nothing
    report: bool = True  # write the report at the end
    checkpoint: str | None = (
        None  # file in a trial's directory from which an interrupted trial resumes
    )
    columns: dict[str, str] = field(default_factory=dict)  # leaderboard: metric -> heading
    # configuration keys whose values may differ when a sweep or a run resumes
    may_change: list[str] = field(default_factory=lambda: ["device", "store"])
