"""Settings of a sweep."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf

from mnist_sweep.common.rules import NOT_EMPTY, SEED, Matching, Rule, above, at_least
from mnist_sweep.common.schema import schema

DIRECTION = Matching("maximize|minimize", "maximize or minimize")
FILE_NAME = Matching(
    r"([^/]*[^/.][^/]*/)*[^/]*[^/.][^/]*", "the name of a file in the directory of a trial"
)

# Rules of arguments that Optuna checks only while it samples or prunes.
OPTUNA_ARGUMENTS: dict[str, Rule] = {
    "sampler.n_startup_trials": at_least(0),
    "sampler.n_ei_candidates": above(0),
    "sampler.sigma0": above(0),
    "sampler.popsize": above(1),
    "pruner.min_resource": above(0),
    "pruner.max_resource": above(0),
    "pruner.reduction_factor": above(1),
    "pruner.bootstrap_count": at_least(0),
}

# What the stock Optuna sweeper's group `hydra/sweeper/sampler` names instead of a class.
STOCK_TARGETS = {
    "create_nsgaii_sampler": "optuna.samplers.NSGAIISampler",
    "create_nsgaiii_sampler": "optuna.samplers.NSGAIIISampler",
}


@schema
class SweepConfig:
    """Settings of a sweep, that is of a command with `-m`."""

    name: str | None = None  # of the study and its directory; null: a new name made of the time
    # of a search: COMPLETE + PRUNED trials of the whole study; null: all points if no interval and no
    # sampler is given, otherwise 30
    n_trials: Annotated[int | None, above(0)] = None
    # workers; null: 1 on the CPU, otherwise GPUs x trials_per_gpu
    n_jobs: Annotated[int | None, above(0)] = None
    trials_per_gpu: Annotated[int, above(0)] = 1
    # parameter -> choice(), range() or interval()
    space: dict[str, Any] | None = None
    # conditional parameter -> {other parameter: values with which it exists}
    when: dict[str, Any] = field(default_factory=dict)
    sampler: Any = None  # a class of optuna.samplers; null: the grid, or TPE
    pruner: Any = None  # a class of optuna.pruners; null: no pruning
    # a function of your application, (config, trial) -> None, that suggests more parameters
    custom_search_space: str | None = None
    objective: str | None = None  # the reported metric to optimise; null: what the task returns
    # minimize or maximize; a list if the task returns several values
    direction: Annotated[Any, DIRECTION] = "minimize"
    # metric -> direction, if there are several; no pruning
    objectives: Annotated[dict[str, str] | None, DIRECTION] = None
    seed: Annotated[int, SEED] = 0  # of the sampler
    duplicates: Literal["allow", "skip"] = "allow"  # points that were tried before
    # failed trials / n_trials above which the sweep stops
    max_failure_rate: Annotated[float, at_least(0).at_most(1)] = 1.0
    # attempts of a trial that end without a new checkpoint, in a row, before the last one
    retries: Annotated[int, at_least(0)] = 2
    # heartbeat timeout, in seconds
    grace_s: Annotated[int, above(0).at_most(86400)] = 60
    # seconds after which a trial is stopped and FAILs
    trial_timeout_s: Annotated[float | None, above(0)] = None
    # folder of the default `storage`, and of the sweeps unless hydra.sweep.dir names another
    store: Annotated[str, NOT_EMPTY] = "multirun"
    # database URL without a password; null: SQLite, <store>/optuna.db
    storage: Annotated[str | None, NOT_EMPTY] = None
    # auto, cuda: each worker gets a GPU if there are any; others: it gets none
    device: str = "auto"
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
    may_change: list[str] = field(default_factory=list)
    # keys and config groups that configure the sweep, not its trials
    own_keys: list[str] = field(default_factory=list)


@dataclass
class SweeperConfig(SweepConfig):
    """The settings as `hydra.sweeper`, where Hydra's plugins have them."""

    defaults: list[Any] = field(
        default_factory=lambda: ["_self_", {"sampler": None}, {"pruner": None}]
    )
    _target_: str = "mnist_sweep.sweep.plugin.StudySweeper"
    _recursive_: bool = False
    study_name: str | None = None  # the stock Optuna sweeper's word for `name`
    params: dict[str, Any] | None = None  # and for `space`
    name: str | None = "${.study_name}"
    space: dict[str, Any] | None = "${.params}"  # type: ignore[assignment]


def settings_key(config: DictConfig) -> str:
    """The key of the sweep's settings: hydra.sweeper, or a short form such as sweep."""
    return str(config.hydra.sweeper.get("settings") or "hydra.sweeper")


def settings_of(config: DictConfig) -> DictConfig:
    """The settings of a sweep in an application's configuration."""
    settings: DictConfig = OmegaConf.select(config, settings_key(config))
    return settings


def resolved(node: DictConfig, key: str) -> DictConfig:
    """Resolve the settings of a sweep. `key` is where they stand, for messages."""
    values: Any = OmegaConf.to_container(node, resolve=True)
    if values["sampler"] is not None:
        target = values["sampler"].get("_target_")
        values["sampler"]["_target_"] = STOCK_TARGETS.get(str(target).rpartition(".")[2], target)
    return OmegaConf.create({**values, "key": key})
