"""Settings of a sweep."""

from dataclasses import field
from typing import Any, Literal

from mnist_sweep.common.schema import schema


@schema
class SweepConfig:
    """A sweep: what `-m` runs."""

    name: str | None = None  # of the study and the directory; null: a new one from the time
    n_trials: int | None = None  # COMPLETE + PRUNED of the whole study; null: the grid, or 30
    n_jobs: int | None = None  # workers; null: 1 on the CPU, GPUs x trials_per_gpu otherwise
    trials_per_gpu: int = 1
    space: dict[str, Any] = field(
        default_factory=dict
    )  # parameter -> choice(), range(), interval()
    when: dict[str, Any] = field(default_factory=dict)  # parameter -> {other: values that allow it}
    sampler: dict[str, Any] | None = None  # a class of optuna.samplers; null: grid, or TPE
    pruner: dict[str, Any] | None = None  # a class of optuna.pruners; null: none
    objectives: dict[str, str] | None = None  # metric -> direction, for more than one; no pruning
    seed: int = "${seed}"  # type: ignore[assignment]  # of the sampler
    duplicates: Literal["allow", "skip"] = "allow"  # a point that was tried before
    max_failure_rate: float = 1.0  # failed trials / n_trials above which the sweep stops
    retries: int = 2  # of a trial whose process died
    grace_s: int = 60  # a worker that shows no sign of life for this long is dead
    trial_timeout_s: float | None = None  # after which a trial is ended and FAIL
    storage: str | None = None  # database URL; null: SQLite under `store`
    top_k: int | None = None  # keep the models of the best k trials; null: of all
    extend: bool = False  # allow another space on the same name
    dry_run: bool = False  # show what would run
    report: bool = True  # at the end, see `mnist_sweep.report`
