"""Settings of a sweep."""

from dataclasses import field
from typing import Annotated, Any, Literal

from mnist_sweep.common.rules import NOT_EMPTY, SEED, Matching, Rule, above, at_least
from mnist_sweep.common.schema import schema

# Keys and config groups that configure the sweep itself, not its trials.
OWN_KEYS = ("sweep", "search", "pruner", "space")


DIRECTION = Matching("maximize|minimize", "maximize or minimize")
FILE_NAME = Matching(r"[^/]*[^/.][^/]*", "the name of a file in the directory of a trial")

# Rules of arguments that Optuna checks only while it samples or prunes.
OPTUNA_ARGUMENTS: dict[str, Rule] = {
    "sweep.sampler.n_startup_trials": at_least(0),
    "sweep.sampler.n_ei_candidates": above(0),
    "sweep.sampler.sigma0": above(0),
    "sweep.sampler.popsize": above(1),
    "sweep.pruner.min_resource": above(0),
    "sweep.pruner.max_resource": above(0),
    "sweep.pruner.reduction_factor": above(1),
    "sweep.pruner.bootstrap_count": at_least(0),
}


@schema
class SweepConfig:
    """Settings of a sweep, that is of a command with `-m`."""

    name: str | None = None  # of the study and its directory; null: a new name made of the time
    # of a search: COMPLETE + PRUNED trials of the whole study; null: 30
    n_trials: Annotated[int | None, above(0)] = None
    # workers; null: 1 on the CPU, otherwise GPUs x trials_per_gpu
    n_jobs: Annotated[int | None, above(0)] = None
    trials_per_gpu: Annotated[int, above(0)] = 1
    # parameter -> choice(), range() or interval()
    space: dict[str, Any] = field(default_factory=dict)
    # conditional parameter -> {other parameter: values with which it exists}
    when: dict[str, Any] = field(default_factory=dict)
    sampler: dict[str, Any] | None = None  # a class of optuna.samplers; null: the grid, or TPE
    pruner: dict[str, Any] | None = None  # a class of optuna.pruners; null: no pruning
    # metric -> direction, if there are several; no pruning
    objectives: Annotated[dict[str, str] | None, DIRECTION] = None
    seed: Annotated[int, SEED] = "${seed}"  # type: ignore[assignment]  # of the sampler
    duplicates: Literal["allow", "skip"] = "allow"  # points that were tried before
    # failed trials / n_trials above which the sweep stops
    max_failure_rate: Annotated[float, at_least(0).at_most(1)] = 1.0
    # attempts of a trial that end without a new checkpoint, in a row, before the last one
    retries: Annotated[int, at_least(0)] = 2
    # heartbeat timeout, in seconds
    grace_s: Annotated[int, above(0).at_most(86400)] = 60
    # seconds after which a trial is stopped and FAILs
    trial_timeout_s: Annotated[float | None, above(0)] = None
    # database URL without a password; null: SQLite under `store`
    storage: Annotated[str | None, NOT_EMPTY] = None
    # let a sampler that keeps pickles in `storage` (CMA-ES) run code from it, as long as only people you
    # trust can write to it; the default storage counts as your own
    trust: bool = False
    # keep only the models of the best k trials; null: keep all
    top_k: Annotated[int | None, above(0)] = None
    extend: bool = False  # accept another search space under the same name
    dry_run: bool = False  # preview the trials, run nothing
    report: bool = True  # write the report at the end
    # file in a trial's directory from which an interrupted trial resumes
    checkpoint: Annotated[str | None, FILE_NAME] = None
    # modules that the server of the workers imports once for all of them
    preload: list[str] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)  # leaderboard: metric -> heading
    # configuration keys whose values may differ when a sweep or a run resumes
    may_change: list[str] = field(default_factory=lambda: ["device", "store"])
