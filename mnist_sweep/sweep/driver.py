"""The process that the user started: makes the study, starts the workers, prints the summary."""

import logging
import os
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import optuna
from hydra.core.config_loader import ConfigLoader
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from optuna.trial import TrialState

from mnist_sweep.common import processes, signals
from mnist_sweep.common.configs import is_under
from mnist_sweep.common.errors import UserError
from mnist_sweep.common.files import make_folder
from mnist_sweep.common.program import command_line, config_flags
from mnist_sweep.common.secrets import check_url
from mnist_sweep.sweep import checks, display, hydra_internals, results, samplers
from mnist_sweep.sweep import study as storage
from mnist_sweep.sweep.callback import Sweep, SweepCallback
from mnist_sweep.sweep.config import resolved, settings_key, settings_of
from mnist_sweep.sweep.coordinator import SETTLE_S, Coordinator, CoordinatorThread
from mnist_sweep.sweep.launched import LaunchedWorker
from mnist_sweep.sweep.overrides import to_text
from mnist_sweep.sweep.plan import Plan
from mnist_sweep.sweep.results import COMPARE, About
from mnist_sweep.sweep.space import Space, parse
from mnist_sweep.sweep.study import get_trials
from mnist_sweep.sweep.worker import Job

log = logging.getLogger(__name__)

DEFAULT_N_TRIALS = 30
DEFAULT_DIRECTORY = "multirun/${now:%Y-%m-%d}/${now:%H-%M-%S}"  # Hydra's own hydra.sweep.dir
LAUNCHES = 10  # of workers in a row that end within SHORT_LAUNCH_S while the budget is open
SHORT_LAUNCH_S = 60


def sweep(
    hydra_context: HydraContext, task: TaskFunction, config: DictConfig, arguments: list[str]
) -> float | None:
    """Run a grid or a search until its budget is used up.

    Returns:
        The best value of a single objective; None in a dry run or with several objectives.

    Raises:
        UserError: the settings make no sweep, or the study has another search space.
        SystemExit: 1 if a grid has holes or no trial completed; 130 or 143 if interrupted.
    """
    loader = hydra_context.config_loader
    settings = _settings(config)
    space = parse(settings, arguments)
    checks.check_space(space, settings, config, loader)
    point = space.example(config)
    values = [f"{name}={value}" for name, value in point.items()]
    example = loader.load_sweep_config(config, [*space.fixed, *values])
    grid = _grid(space, settings, config)
    objectives = _objectives(settings)
    directions = list(objectives.values())
    if grid is None:
        checks.rehearse(space, settings, config, directions)
    info = Sweep(
        name=settings.name,
        directory=_directory(settings, config),
        settings=settings,
        objectives=objectives,
        config=config,
        example=example,
        variations=checks.variations(space, example, point),
        parameters=list(space.distributions),
        overrides=list(space.fixed),
    )
    callbacks = hydra_internals.sweep_callbacks(hydra_context)
    for callback in callbacks:
        callback.on_sweep_prepare(info)
    if settings.dry_run:
        points = _preview(space, grid, settings, directions, config)
        fixed = [o for o in space.fixed if not is_under(o.partition("=")[0], settings.own_keys)]
        display.preview(points, fixed, grid=bool(grid))
        return None

    space = replace(space, fixed=info.overrides)
    study = storage.create_study(
        storage.storage_url(settings.storage, settings.store),
        settings.grace_s,
        info.name,
        directions,
        sampler=samplers.make_sampler(settings),
        pruner=samplers.make_pruner(settings),
        key=f"{settings.key}.storage",
    )
    storage.check_fingerprint(study, space.fingerprint(settings), settings)
    with signals.obeyed(), _notified(callbacks, info, study):
        metrics = list(objectives)
        plan = Plan(
            invocation=uuid.uuid4().hex,
            failed_before=frozenset(t.number for t in get_trials(study) if storage.own_failure(t)),
            study_name=info.name,
            space=space,
            n_trials=len(grid) if grid is not None else settings.n_trials or DEFAULT_N_TRIALS,
            grid=grid,
            metrics=metrics,
            # without the URL, because launchers write the plan to files
            settings=OmegaConf.create({**settings, "storage": None}),
            directory=info.directory,
            driver=processes.process_identity(),
            tags=info.tags,
        )
        link = info.links.get(COMPARE, "")
        columns = dict(settings.columns)
        own = list(settings.own_keys)
        given: Any = OmegaConf.to_container(config.hydra.overrides.hydra, resolve=False)
        flags = [*config_flags(), *(o for o in given if o.startswith("hydra.searchpath"))]
        About(metrics, space.fixed, str(plan.directory), link, columns, own, flags).save(study)
        make_folder(plan.directory)
        OmegaConf.save(config, plan.directory / "multirun.yaml")  # as Hydra's basic sweeper does
        job = Job(
            task,
            hydra_context,
            _own_loader(plan, loader),
            config,
            settings=plan.settings,
            is_grid=grid is not None,
            directory=plan.directory,
            metrics=metrics,
            tags=info.tags,
        )
        coordinator = Coordinator(study, plan, config)
        _run(coordinator, job)
    return _conclude(coordinator, info)


def _settings(config: DictConfig) -> DictConfig:
    """Check the settings and resolve them.

    A sweep without a name gets one, in `config` too, where other settings may refer to it.
    """
    key, node = settings_key(config), settings_of(config)
    check_url(config, f"{key}.storage")
    checks.check_settings(node, key)
    if node.name is None:
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
        with read_write(config.hydra), open_dict(config):
            node.name = name
            if key == "hydra.sweeper":  # Hydra composes the trials from its overrides
                config.hydra.overrides.hydra.append(f"{key}.name={name}")
    settings = resolved(node, key)
    samplers.check_trust(settings)
    return settings


def _objectives(settings: DictConfig) -> dict[str, str]:
    """The direction of each objective by its name."""
    if settings.objectives:
        return dict(settings.objectives)
    if OmegaConf.is_list(settings.direction):
        return {f"value {i}": str(each) for i, each in enumerate(settings.direction, start=1)}
    return {settings.objective or "value": str(settings.direction)}


def _grid(
    space: Space, settings: DictConfig, config: DictConfig
) -> dict[str, dict[str, Any]] | None:
    """The points of a grid by their keys; None: the sweep is a search."""
    if not samplers.is_grid(settings):
        has_sampler = settings.sampler is not None or settings.custom_search_space is not None
        if has_sampler or settings.n_trials is not None or not space.is_grid:
            return None
    points = space.grid(config)
    return dict(islice(points.items(), settings.n_trials))


def _directory(settings: DictConfig, config: DictConfig) -> Path:
    """The sweep's directory. Raises UserError if Hydra would not write to it."""
    written: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    if written["dir"] == DEFAULT_DIRECTORY:  # a second call would not find it
        return Path(settings.store, settings.name).resolve()
    directory = Path(config.hydra.sweep.dir).resolve()
    if "${" in str(directory):  # Hydra would interpolate it
        raise UserError(f"hydra.sweep.dir={directory}: expected a path without ${{")
    return directory


@contextmanager
def _notified(
    callbacks: Sequence[SweepCallback], info: Sweep, study: optuna.Study
) -> Iterator[None]:
    """Call `on_sweep_start`, and at the end `on_sweep_end` in reverse order, whatever happens."""
    with ExitStack() as stack:
        for callback in callbacks:
            callback.on_sweep_start(info, study)
            stack.push(partial(_end, callback, info, study))
        yield


def _end(
    callback: SweepCallback,
    info: Sweep,
    study: optuna.Study,
    _kind: type[BaseException] | None,
    error: BaseException | None,
    _traceback: TracebackType | None,
) -> None:
    callback.on_sweep_end(info, study, error)


def _run(coordinator: Coordinator, job: Job) -> None:
    """Run workers until the budget is used up. After Ctrl-C or SIGTERM no trial stays RUNNING."""
    study, plan = coordinator.study, coordinator.plan
    resume = command_line(f"{plan.settings.key}.name={plan.study_name}")
    thread = CoordinatorThread(coordinator)
    thread.start()
    try:
        thread.call(coordinator.look).result()
        with display.live(coordinator):
            n_short = 0
            while n_short < LAUNCHES:  # longer ones met a time limit, or were preempted
                started_at = time.monotonic()
                trials = thread.call(coordinator.look).result()
                n_open = plan.n_trials - plan.finished(trials)
                if n_open <= 0 or coordinator.is_over:
                    thread.call(coordinator.tick).result()  # trials of others may have died
                    return
                _launch(thread, job, n_jobs=min(_n_jobs(plan.settings), n_open))
                n_short = n_short + 1 if time.monotonic() - started_at < SHORT_LAUNCH_S else 0
    except (KeyboardInterrupt, SystemExit):
        with signals.ignored():
            coordinator.stop(storage.INTERRUPTED)
            thread.call(storage.interrupt, study, plan.invocation)
            thread.call(storage.wait_until, lambda: _settled(study, plan), SETTLE_S)
            if not thread.close(SETTLE_S):  # the database is away
                storage.give_up(study)
        log.warning("interrupted; resume with:\n  %s", resume)
        raise
    finally:
        thread.close()
    raise UserError(
        f"the workers of sweep {plan.study_name} ended early {LAUNCHES} times in a row; the logs in "
        f"{plan.directory}/.workers say why. Then resume with: {resume}"
    )


def _launch(thread: CoordinatorThread, job: Job, n_jobs: int) -> None:
    """Run workers once. It returns when all have ended; Optuna knows what they did."""
    config, context = job.config, job.hydra_context
    worker = LaunchedWorker(thread.coordinator.plan, job, os.getcwd())
    launcher = Plugins.instance().instantiate_launcher(
        config=config,
        hydra_context=hydra_internals.without_callbacks(context),
        task_function=worker,
    )
    environments = [_environment(job.settings, i, n_jobs) for i in range(n_jobs)]
    if hasattr(launcher, "run_workers"):  # ProcessLauncher
        launcher.run_workers(job, thread, environments)
        return
    if isinstance(launcher, hydra_internals.BasicLauncher) and n_jobs > 1:
        log.warning("hydra/launcher=basic runs one worker; hydra/launcher=mnist_sweep runs n_jobs")
    try:
        space = thread.coordinator.plan.space
        point = [f"{name}={value}" for name, value in space.example(config).items()]
        overrides = [
            (*space.fixed, *point, *_slot(job.directory, i, e)) for i, e in enumerate(environments)
        ]
        for job_return in launcher.launch(overrides, initial_job_idx=0):
            if (ended_by := hydra_internals.job_error(job_return)) is not None:
                log.warning("a worker ended with %s: %s", type(ended_by).__name__, ended_by)
    except Exception as error:  # joblib's pool and submitit's driver raise when a worker dies
        log.warning("the launcher ended with %s: %s", type(error).__name__, error)


def _environment(settings: DictConfig, index: int, n_jobs: int) -> dict[str, str]:
    """Variables that give a worker its share of the machine."""
    gpus = _visible_gpus(settings)
    # the cores that this process may use, if the system can tell
    cores = getattr(os, "sched_getaffinity", lambda _pid: range(os.cpu_count() or 1))(0)
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(cores))
    environment = {"OMP_NUM_THREADS": str(max(1, threads // n_jobs))}
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
    return environment


def _slot(directory: Path, index: int, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Overrides of the job that another launcher runs as a worker."""
    return (
        f"hydra.sweep.dir={to_text(str(directory))}",
        f"hydra.sweep.subdir=.workers/{index}",
        "hydra.output_subdir=null",
        *(f"++hydra.job.env_set.{name}={to_text(value)}" for name, value in environment.items()),
    )


def _n_jobs(settings: DictConfig) -> int:
    gpus = _visible_gpus(settings)
    return int(settings.n_jobs or max(1, len(gpus) * settings.trials_per_gpu))


def _visible_gpus(settings: DictConfig) -> list[str]:
    """The GPUs that the workers may share, found without starting CUDA in this process."""
    if settings.device not in ("auto", "cuda"):  # cuda:1 names one GPU
        return []
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu for gpu in visible.split(",") if gpu]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    slices = re.findall(r"MIG-[0-9a-f-]{36}", listed.stdout)  # of partitioned GPUs
    return slices or re.findall(r"^GPU (\d+):", listed.stdout, re.MULTILINE)


def _own_loader(plan: Plan, loader: ConfigLoader) -> ConfigLoader:
    """Copy the application's configuration into the sweep's directory, and return a loader of the copy.

    Every trial is composed from the copy. Editing the original while the sweep runs, or before it
    resumes, changes none of its trials. Only YAML files are copied, because the folder may also hold
    the application, its results and the sweep's own directory.
    """
    source = hydra_internals.config_directory(loader)
    if source is None:
        return loader
    # sweeps may share the directory
    name = "conf" if plan.directory.name == plan.study_name else f"conf-{plan.study_name}"
    copied = plan.directory / name
    if plan.settings.extend:
        shutil.rmtree(copied, ignore_errors=True)
    if not copied.exists():
        _copy_yaml(plan, source, copied)
    return hydra_internals.relocated(loader, copied)


def _copy_yaml(plan: Plan, source: Path, copied: Path) -> None:
    unfinished = copied.with_name(f".conf-{plan.invocation}")
    for file in _yaml_files(source, skip={plan.directory.parent, plan.directory}):
        target = unfinished / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    try:
        unfinished.rename(copied)
    except OSError:  # another driver was faster
        shutil.rmtree(unfinished)


def _yaml_files(folder: Path, skip: set[Path]) -> Iterator[Path]:
    """The YAML files below `folder`, without hidden folders, outputs of runs and sweeps, and `skip`."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            is_output = (
                path.resolve() in skip or any(path.glob(".hydra")) or any(path.glob("*/.hydra"))
            )
            if not (path.name.startswith(".") or is_output):
                yield from _yaml_files(path, skip)
        elif path.suffix in (".yaml", ".yml"):
            yield path


def _preview(
    space: Space,
    grid: dict[str, dict[str, Any]] | None,
    settings: DictConfig,
    directions: Sequence[Any],
    config: DictConfig,
) -> list[dict[str, Any]]:
    """The points of a grid, or the first points of a new search."""
    if grid is not None:
        return list(grid.values())
    study = optuna.create_study(directions=directions, sampler=samplers.make_sampler(settings))
    n = min(_n_jobs(settings), settings.n_trials or DEFAULT_N_TRIALS)
    return [space.suggest(study.ask(), config) for _ in range(n)]


def _settled(study: optuna.Study, plan: Plan) -> bool:
    """Whether no trial of this call is RUNNING. Queues the trials of dead processes again."""
    running = [
        t
        for t in get_trials(study, TrialState.RUNNING)
        if t.user_attrs.get(storage.WORKER, {}).get("invocation") == plan.invocation
    ]
    for trial in running:
        if processes.is_dead(trial.user_attrs[storage.WORKER]):
            storage.requeue(study, trial, storage.INTERRUPTED, plan.settings)
    return not running


def _conclude(coordinator: Coordinator, info: Sweep) -> float | None:
    """Print the summary; the exit code says whether all went well."""
    study, plan = coordinator.study, coordinator.plan
    display.summary(study, plan, info.links)
    if coordinator.stop_reason:
        log.error("stopped early: %s", coordinator.stop_reason)
    completed = get_trials(study, TrialState.COMPLETE)
    # a search replaces its failures, a grid has holes
    holes = plan.grid and plan.failed(get_trials(study))
    if holes or not completed or coordinator.stop_reason:
        raise SystemExit(1)
    single = len(plan.metrics) == 1 and results.has_objective(study)
    return study.best_value if single else None
