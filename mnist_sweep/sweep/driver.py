"""The process the user started: makes the study, starts the workers once, settles, sums up."""

import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from optuna.trial import TrialState

from mnist_sweep import config as configuration
from mnist_sweep.common import processes
from mnist_sweep.common import signals as interrupt
from mnist_sweep.common.errors import UserError, did_you_mean
from mnist_sweep.sweep import display, results
from mnist_sweep.sweep import samplers as search
from mnist_sweep.sweep import study as storage
from mnist_sweep.sweep.results import About
from mnist_sweep.sweep.space import Space, parse
from mnist_sweep.sweep.study import trials
from mnist_sweep.sweep.worker import Plan, Worker, stop, stop_reason
from mnist_sweep.tracking import sweep_run as record
from mnist_sweep.tracking.sweep_run import SweepRecord

log = logging.getLogger(__name__)

DEFAULT_N_TRIALS = 30
NAME = re.compile(r"[\w.+-]+")  # of a folder, and within MLflow's queries
ROUNDS = 10  # of launching workers while the budget is open
SETTLE_S = 4  # for interrupted workers to let go of their trials


def sweep(
    hydra_context: HydraContext, task: TaskFunction, config: DictConfig, arguments: list[str]
) -> float | None:
    """Run a grid or a search to its budget; returns the best value of a single objective.

    Raises:
        UserError: settings that make no sweep, or a study of another space.
        SystemExit: 1 where a grid has holes or no trial completed, 130 or 143 when interrupted.
    """
    settings = config.sweep
    space = parse(settings, arguments)
    _check(space, hydra_context.config_loader, config)
    grid = space.grid(config) if settings.sampler is None and space.is_grid else None
    directions = list((settings.objectives or {config.objective: config.direction}).values())
    if settings.dry_run:
        display.dry_run(_preview(space, grid, settings, directions, config), space, grid=bool(grid))
        return None

    if settings.name and not NAME.fullmatch(settings.name):
        raise UserError(f"sweep.name={settings.name}: expected letters, digits, and any of . _ - +")
    name = settings.name or f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
    with open_dict(config):
        settings.name = name
    url = storage.storage_url(settings.storage, config.store)
    space = _settle_data(space, config)
    study = storage.create_study(url, settings.grace_s, name, directions)
    storage.check_fingerprint(study, space.fingerprint(), extend=settings.extend)
    plan = Plan(
        invocation=uuid.uuid4().hex,
        failed_before=frozenset(t.number for t in trials(study) if storage.own_failure(t)),
        study_name=name,
        storage_url=url,
        space=space,
        n_trials=len(grid) if grid is not None else settings.n_trials or DEFAULT_N_TRIALS,
        grid=grid,
        metrics=list(settings.objectives or [config.objective]),
        settings=DictConfig(OmegaConf.to_container(settings, resolve=True)),
        directory=Path(config.hydra.sweep.dir).resolve(),
        cwd=os.getcwd(),
        driver=processes.process_identity(),
    )
    loader = _snapshot(plan, hydra_context)
    with interrupt.obeyed(), record.of_sweep(config, plan, study) as sweep_record:
        link = sweep_record.link if sweep_record else ""
        About(plan.metrics, plan.space.fixed, str(plan.directory), link).save(study)
        worker = Worker(plan, task, hydra_context, loader, config)
        _run(study, plan, worker)
        storage.reap(study, settings.grace_s, settings.retries)
        kept = None if settings.top_k is None else _drop_weights(study, settings.top_k)
        if sweep_record:
            sweep_record.finish(study, kept)
        page = _report(study, plan, config, sweep_record) if settings.report else None
    return _conclude(study, plan, config, link, page)


def _check(space: Space, loader: ConfigLoader, config: DictConfig) -> None:
    """Tell of what no trial could be composed of before anything is made."""
    for name, distribution in space.distributions.items():
        options = loader.get_group_options(name)
        for choice in getattr(distribution, "choices", ()) if options else ():
            if choice not in options:
                hint = did_you_mean(str(choice), options)
                there = ", ".join(options)
                raise UserError(f"{name}={choice}: no such choice{hint}; there are {there}")
    point = [f"{name}={value}" for name, value in space.example(config).items()]
    example = loader.load_sweep_config(config, [*space.fixed, *point])
    if "trainer" in example:  # a task of ours
        configuration.check(example)


def _run(study: optuna.Study, plan: Plan, worker: Worker) -> None:
    """Workers until the budget is filled; on Ctrl-C or SIGTERM nothing is left RUNNING."""
    try:
        with display.live(study, plan):
            for _ in range(ROUNDS):
                open_ = plan.n_trials - plan.finished(trials(study))
                if open_ <= 0 or stop_reason(study, plan):
                    return
                _launch(worker, n_jobs=min(_n_jobs(worker.config), open_))
    except (KeyboardInterrupt, SystemExit):
        with interrupt.ignored():
            stop(study, plan, storage.INTERRUPTED)
            storage.wait_until(lambda: _settled(study, plan), SETTLE_S)
        log.warning("interrupted; the same command goes on:\n  %s", _command(plan))
        raise
    raise UserError(
        f"the workers of sweep {plan.study_name} died again and again; the logs in "
        f"{plan.directory}/.workers say why. Then go on with: {_command(plan)}"
    )


def _launch(worker: Worker, n_jobs: int) -> None:
    """One call of the launcher for as long as the workers live; their deaths are ours to count."""
    # Without callbacks: each worker would fire on_job_start for itself.
    quiet = HydraContext(
        config_loader=worker.hydra_context.config_loader,
        callbacks=Callbacks(),
        execution_whitelist=worker.hydra_context.execution_whitelist,
    )
    launcher = Plugins.instance().instantiate_launcher(
        config=worker.config, hydra_context=quiet, task_function=worker
    )
    try:
        launcher.launch([_slot(worker, i, n_jobs) for i in range(n_jobs)], initial_job_idx=0)
    except Exception as error:  # joblib's pool and submitit's driver raise when a worker dies
        log.warning("the launcher ended with %s: %s", type(error).__name__, error)


def _slot(worker: Worker, index: int, n_jobs: int) -> tuple[str, ...]:
    """The overrides of one worker's own job: its directory and what it may see of the machine."""
    gpus = _visible_gpus(worker.config)
    # cores that this process may use, where the system says so
    cores = getattr(os, "sched_getaffinity", lambda _pid: range(os.cpu_count() or 1))(0)
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(cores))
    environment = {"OMP_NUM_THREADS": max(1, threads // n_jobs)}
    overrides = [
        f"hydra.sweep.dir='{worker.plan.directory}'",
        f"hydra.sweep.subdir=.workers/{index}",
        "hydra.output_subdir=null",
    ]
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]  # type: ignore[assignment]
    return (*overrides, *(f"++hydra.job.env_set.{k}='{v}'" for k, v in environment.items()))


def _n_jobs(config: DictConfig) -> int:
    gpus = _visible_gpus(config)
    return int(config.sweep.n_jobs or max(1, len(gpus) * config.sweep.trials_per_gpu))


def _visible_gpus(config: DictConfig) -> list[str]:
    """The GPUs that this sweep may share out, without starting CUDA in this process."""
    if config.device not in ("auto", "cuda"):  # cuda:1 is one that was chosen already
        return []
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu for gpu in visible.split(",") if gpu]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    slices = re.findall(r"MIG-[0-9a-f-]{36}", listed.stdout)  # of cards that are cut up
    return slices or re.findall(r"^GPU (\d+):", listed.stdout, re.MULTILINE)


def _settle_data(space: Space, config: DictConfig) -> Space:
    """Fetch the data, or choose the stand-in, once for all trials."""
    if "data" not in config:
        return space  # a task of another kind
    if any(name == "data" or name.startswith("data.") for name in space.distributions):
        return space  # each trial has its own
    chosen = [o for o in space.fixed if o.startswith("data=")]
    if chosen == ["data=mnist5k"]:
        return space
    from mnist_sweep.data.dataset import load_dataset

    name = load_dataset(config.data).name
    if name == config.data.name:
        return space
    kept = [o for o in space.fixed if o not in chosen and not o.startswith("data.val_size=")]
    return replace(space, fixed=[*kept, f"data={name}"])


def _snapshot(plan: Plan, hydra_context: HydraContext) -> ConfigLoader:
    """A copy of conf/ in the sweep's directory, and a loader that composes every trial from it.

    Editing conf/ while the sweep runs, or before it is resumed, then changes none of its trials.
    """
    copied = plan.directory / "conf"
    search_path = deepcopy(hydra_context.config_loader.get_search_path())
    main = next(element for element in search_path.get_path() if element.provider == "main")
    if plan.settings.extend:
        shutil.rmtree(copied, ignore_errors=True)
    if not copied.exists():
        unfinished = copied.with_name(f".conf-{plan.invocation}")
        shutil.copytree(main.path.removeprefix("file://"), unfinished)
        try:
            unfinished.rename(copied)
        except OSError:  # another driver was faster
            shutil.rmtree(unfinished)
    main.path = f"file://{copied}"
    return ConfigLoaderImpl(search_path)


def _preview(
    space: Space,
    grid: dict[str, dict[str, Any]] | None,
    settings: DictConfig,
    directions: Sequence[Any],
    config: DictConfig,
) -> list[dict[str, Any]]:
    """The points of a grid, or the first that a new study would try, from a study in memory."""
    if grid is not None:
        return list(grid.values())
    study = optuna.create_study(directions=directions, sampler=search.make_sampler(settings))
    n = min(_n_jobs(config), settings.n_trials or DEFAULT_N_TRIALS)
    return [space.suggest(study.ask(), config) for _ in range(n)]


def _settled(study: optuna.Study, plan: Plan) -> bool:
    """No trial of this invocation is RUNNING; those of dead processes are given back."""
    mine = [
        t
        for t in trials(study, TrialState.RUNNING)
        if t.user_attrs.get(storage.INVOCATION, plan.invocation) == plan.invocation
    ]
    for trial in mine:
        worker = trial.user_attrs.get(storage.WORKER)
        if worker is None or processes.is_dead(worker):
            storage.give_back(study, trial, storage.INTERRUPTED)
    return not mine


def _drop_weights(study: optuna.Study, top_k: int) -> set[int]:
    """Keep those of the best `top_k` trials, of several objectives of their front; their numbers."""
    found = trials(study, TrialState.COMPLETE)
    if len(study.directions) > 1:
        kept = study.best_trials
    else:
        reverse = results.maximizes(study)
        kept = sorted(found, key=lambda t: t.value or 0.0, reverse=reverse)[:top_k]
    first = results.ranked(study)[:1]  # whose model is registered: by the mean over the seeds
    numbers = {trial.number for trial in [*kept, *(c.trials[0] for c in first)]}
    for trial in trials(study):
        directory = trial.user_attrs.get(storage.DIRECTORY)
        if directory and trial.number not in numbers:
            for weights in Path(directory).glob("*.pt"):
                weights.unlink()
    return numbers


def _report(
    study: optuna.Study, plan: Plan, config: DictConfig, sweep_record: SweepRecord | None
) -> Path | None:
    """The page, or None where it could not be made: the trials are safe all the same."""
    from mnist_sweep.report import page  # imports matplotlib, plotly and mlflow

    folder = plan.directory / "report"
    experiment = config.tracking.experiment
    try:
        uri = sweep_record.uri if sweep_record else None
        written = page.write(folder, study, uri=uri, experiment=experiment)
        if sweep_record:
            sweep_record.keep_report(folder)
    except Exception:
        log.exception("no report; python -m mnist_sweep.report sweep=... tries again")
        return None
    return written


def _command(plan: Plan) -> str:
    arguments = [a for a in sys.argv[1:] if not a.startswith("sweep.name=")]
    return shlex.join(["python", "-m", "mnist_sweep", *arguments, f"sweep.name={plan.study_name}"])


def _conclude(
    study: optuna.Study, plan: Plan, config: DictConfig, link: str, page: Path | None
) -> float | None:
    """Show what came out; the exit code says whether all went well."""
    display.conclusion(study, plan, config, link, page)
    if reason := stop_reason(study, plan):
        log.error("stopped early: %s", reason)
    completed = trials(study, TrialState.COMPLETE)
    # a search made up for its failures, a grid has holes
    holes = plan.grid and plan.failed(trials(study))
    if holes or not completed or stop_reason(study, plan):
        raise SystemExit(1)
    return study.best_value if len(plan.metrics) == 1 else None
