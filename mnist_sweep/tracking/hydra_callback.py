"""Records the jobs and the sweeps of any Hydra application in MLflow, as a Hydra callback.

`hydra/callbacks=mlflow` selects it. Light: it imports mlflow when the first job or sweep starts.
"""

import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn
from hydra.types import TaskFunction
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from mnist_sweep.common.errors import UserError, one_line
from mnist_sweep.common.secrets import check_url
from mnist_sweep.sweep import Sweep, SweepCallback, Trial, current_trial
from mnist_sweep.sweep.hydra_internals import job_error
from mnist_sweep.tracking import names

if TYPE_CHECKING:
    from mnist_sweep.sweep.callback import Study
    from mnist_sweep.tracking.run import MlflowRun

log = logging.getLogger(__name__)

KEY = "hydra.callbacks.mlflow.tracking_uri"
OUTPUTS = "outputs"  # folder of the job's files in its run
MAX_TAG = 5000  # characters of a tag's value
SQLITE = "sqlite:///"


@dataclass(frozen=True)
class _JobsOfSweep:
    """What a job has to know of its sweep."""

    name: str
    objectives: Mapping[str, str]  # metric -> direction; empty if unknown


@dataclass(frozen=True)
class _OpenRun:
    """A run of MLflow that is open, and what closes it."""

    run: "MlflowRun"
    uri: str
    experiment_id: str
    stack: ExitStack

    def close(self, error: BaseException | None) -> None:
        """End the run: FINISHED, after an exception FAILED, after a signal KILLED."""
        traceback = error.__traceback__ if error else None
        self.stack.__exit__(type(error) if error else None, error, traceback)


class MlflowCallback(SweepCallback):
    """Gives every job a run in MLflow, and every sweep a run of its own.

    The run of a job is MLflow's active run while the task runs: what the task logs with `mlflow.log_*`
    or `mlflow.autolog` goes there. An error here costs the record and not the job.

    Args:
        tracking_uri: of a server or a database; None: MLFLOW_TRACKING_URI, otherwise SQLite in `store`.
        experiment: name of the experiment in MLflow; None: the name of the job.
        store: folder of the default database, below the directory where the command starts.
        artifacts: patterns of the files in a job's output directory that MLflow keeps.
        max_file_mb: size in megabytes above which a file is left out.
        tags: tags of every run.
    """

    def __init__(
        self,
        *,
        tracking_uri: str | None,
        experiment: str | None,
        store: str,
        artifacts: Sequence[str],
        max_file_mb: float,
        tags: Mapping[str, str],
    ) -> None:
        # read here, in the user's process: workers on other hosts may lack the variable
        from_environment = os.environ.get("MLFLOW_TRACKING_URI")
        self.key = "MLFLOW_TRACKING_URI" if from_environment and not tracking_uri else KEY
        self.uri, self.store = tracking_uri or from_environment, str(Path(store).resolve())
        if self.uri and self.uri.startswith(SQLITE):  # Hydra may change the working directory
            self.uri = f"{SQLITE}{Path(self.uri.removeprefix(SQLITE)).resolve()}"
        self.experiment, self.tags = experiment, dict(tags)
        self.artifacts, self.max_file_mb = list(artifacts), max_file_mb
        self._code = ("none", "")  # commit and diff of the application
        self._sweep: _JobsOfSweep | None = None
        self._sweep_run: _OpenRun | None = None
        self._job_run: _OpenRun | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Workers receive the callbacks too. What is open stays in its process."""
        return {**self.__dict__, "_sweep_run": None, "_job_run": None}

    # Jobs

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        with _not_fatal("the code is not recorded"):
            self._find_code()

    def on_job_start(self, config: DictConfig, *, task_function: TaskFunction, **_: Any) -> None:
        with _not_fatal("this job is not recorded in MLflow"):
            self._find_code(task_function)
            self._job_run = self._start_job(config)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        job, self._job_run = self._job_run, None
        if job is None:
            return
        error = job_error(job_return)
        with _not_fatal("the end of this job is not recorded in MLflow"):
            try:
                self._check_server(job)
                returned = job_return.return_value if error is None else None
                self._record_results(job.run, config, returned)
            finally:
                job.close(error)

    def _start_job(self, config: DictConfig) -> _OpenRun:
        from mnist_sweep.tracking import job_record
        from mnist_sweep.tracking.run import start_run

        trial = self._trial(config)
        tags = {
            **self._common_tags(),
            "overrides": " ".join(job_record.overrides(config))[:MAX_TAG],
            "directory": str(config.hydra.runtime.output_dir),
        }
        if trial.number is not None:
            tags |= {"sweep": str(trial.sweep), "trial": str(trial.number), **trial.tags}
        params = job_record.params(config, trial.params)
        name = names.run_name(trial, config.hydra.job.name)
        uri, experiment_id = self._prepare(config)
        with ExitStack() as stack:
            opened = start_run(uri, experiment_id, name=name, tags=tags, params=params)
            run = stack.enter_context(opened)
            self._write_inputs(run, config)
            return _OpenRun(run, uri, experiment_id, stack.pop_all())

    def _trial(self, config: DictConfig) -> Trial:
        """Return the trial that the job is. A job of another sweeper is a trial too."""
        from mnist_sweep.tracking import job_record

        trial = current_trial()
        if trial.number is None and self._sweep is not None:
            trial = Trial()
            trial.sweep, trial.number = self._sweep.name, int(config.hydra.job.num)
            trial.params = job_record.overridden(config)
        return trial

    def _record_results(self, run: "MlflowRun", config: DictConfig, returned: Any) -> None:
        from mnist_sweep.tracking import job_record

        if getattr(current_trial(), "pruned", False):
            run.set_tags({"state": "pruned"})
        objectives = list(self._sweep.objectives) if self._sweep else []
        for name, value in job_record.metrics(returned, objectives).items():
            # at the last step that the task logged, where it is the metric's last value
            history = run.client.get_metric_history(run.run_id, name)
            run.log_metrics({name: value}, step=max([m.step for m in history], default=0))
        directory = Path(config.hydra.runtime.output_dir)
        if files := job_record.output_files(directory, self.artifacts, self.max_file_mb):
            run.log_artifacts(partial(_copy, files, directory))

    # Sweeps of this package's sweeper

    def on_sweep_start(self, sweep: Sweep, study: "Study") -> None:
        with _not_fatal("the sweep itself is not recorded in MLflow"):
            self._sweep = _JobsOfSweep(sweep.name, _objectives(sweep))
            own = self._start_sweep(sweep.config, self._sweep, sweep.parameters)
            sweep.links["compare the runs"] = self._link(own, sweep.name)

    def on_sweep_end(self, sweep: Sweep, study: "Study", error: BaseException | None) -> None:
        with self._ending_sweep(sweep.config, error) as own:
            if own is None or self._sweep is None or error is not None:
                return
            from mnist_sweep.tracking.callback import record_study

            record_study(own.run, sweep, study, list(self._sweep.objectives))

    # Sweeps of other sweepers

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        from mnist_sweep.sweep.plugin import StudySweeper

        with _not_fatal("the sweep itself is not recorded in MLflow"):
            self._find_code()
            if issubclass(get_class(config.hydra.sweeper._target_), StudySweeper):
                return  # it calls on_sweep_start
            from mnist_sweep.tracking import job_record

            name = os.path.relpath(config.hydra.sweep.dir, config.hydra.runtime.cwd)
            direction = config.hydra.sweeper.get("direction")  # of Hydra's Optuna sweeper, an Enum
            known = {job_record.RETURN_VALUE: direction.name} if hasattr(direction, "name") else {}
            self._sweep = _JobsOfSweep(name, known)
            self._start_sweep(config, self._sweep, job_record.swept(config))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        error = sys.exc_info()[1]  # Hydra calls this in a `finally`
        with self._ending_sweep(config, error) as own:
            if own is not None and self._sweep is not None:
                self._record_jobs(own, self._sweep)
                log.info("compare the runs: %s", self._link(own, self._sweep.name))

    def _record_jobs(self, own: _OpenRun, sweep: _JobsOfSweep) -> None:
        """Record what the jobs' own runs say about a sweep that has no study."""
        from mnist_sweep.tracking import view
        from mnist_sweep.tracking.callback import record_best
        from mnist_sweep.tracking.job_record import RETURN_VALUE
        from mnist_sweep.tracking.queries import IS_TRIAL, find_runs, tag_is

        query = f"{tag_is('sweep', sweep.name)} AND {IS_TRIAL}"
        jobs = list(find_runs(own.run.client, [own.experiment_id], query))
        complete = [job for job in jobs if job.info.status == "FINISHED"]
        counts = {"trials/complete": len(complete), "trials/fail": len(jobs) - len(complete)}
        own.run.log_metrics(counts, step=0)
        scored = [job for job in complete if RETURN_VALUE in job.data.metrics]
        if not scored or not sweep.objectives:
            return
        pick = max if sweep.objectives[RETURN_VALUE] == "maximize" else min
        best = pick(scored, key=lambda job: job.data.metrics[RETURN_VALUE])
        swept = json.loads(own.run.client.get_run(own.run.run_id).data.tags[view.PARAMETERS])
        params = {name: best.data.params[name] for name in swept if name in best.data.params}
        value, number = best.data.metrics[RETURN_VALUE], int(best.data.tags["trial"])
        record_best(own.run, RETURN_VALUE, value, number, params)

    # Both kinds of sweeps

    def _start_sweep(
        self, config: DictConfig, sweep: _JobsOfSweep, parameters: Sequence[str]
    ) -> _OpenRun:
        from mnist_sweep.tracking import job_record, view
        from mnist_sweep.tracking.run import sweep_run

        uri, experiment_id = self._prepare(config)
        # MLflow's page has to order the runs even if the direction is unknown
        objectives = sweep.objectives or {job_record.RETURN_VALUE: "minimize"}
        with ExitStack() as stack:
            opened = sweep_run(uri, experiment_id, sweep.name, self._common_tags())
            run = stack.enter_context(opened)
            run.set_tags({view.OBJECTIVES: json.dumps(dict(objectives))})
            view.update(run, parameters)
            self._write_inputs(run, config)
            self._sweep_run = _OpenRun(run, uri, experiment_id, stack.pop_all())
        return self._sweep_run

    @contextmanager
    def _ending_sweep(
        self, config: DictConfig, error: BaseException | None
    ) -> Iterator[_OpenRun | None]:
        """Yield the sweep's own run, if it has one, and close it."""
        own, self._sweep_run = self._sweep_run, None
        if own is None:
            yield None
            return
        with _not_fatal("the end of the sweep is not recorded in MLflow"):
            try:
                self._check_server(own)
                yield own
            finally:
                own.close(error)
            self._prepare(config)  # closes the runs of workers that were killed

    # The store and the code

    def _prepare(self, config: DictConfig) -> tuple[str, str]:
        """Create what is missing in the store. Return its URI and the id of the experiment.

        The default store takes the place of one that is away, because the task may log too.
        """
        from mnist_sweep.tracking import run

        try:
            if OmegaConf.select(config, KEY) is not None:
                check_url(config, KEY)
            uri = run.store_uri(self.uri, self.store, self.key)
            run.check_store(uri, self.key)
        except UserError as error:
            uri = run.store_uri(None, self.store)
            log.warning("%s. This run is recorded in %s", one_line(error), uri)
        return uri, run.prepare(uri, self.store, self.experiment or config.hydra.job.name)

    def _check_server(self, opened: _OpenRun) -> None:
        """Raise UserError if the server is away. MLflow would try for minutes."""
        from mnist_sweep.tracking.queries import check_server

        check_server(opened.uri, self.key)

    def _link(self, own: _OpenRun, sweep: str) -> str:
        from mnist_sweep.tracking.links import comparison_link

        return comparison_link(own.uri, own.experiment_id, sweep, os.path.relpath(self.store))

    def _common_tags(self) -> dict[str, str]:
        from mnist_sweep.tracking.provenance import code_tags

        return {**code_tags(self._code), **self.tags}

    def _find_code(self, task: TaskFunction | None = None) -> None:
        """Read the state of the application's code where the command starts, or where the task is.

        Jobs that start later use the same code, and receive its state with the callback.
        """
        from mnist_sweep.tracking.provenance import git_state

        if self._code == ("none", ""):
            module = "__main__" if task is None else getattr(task, "__module__", "__main__")
            file = getattr(sys.modules.get(module), "__file__", None)
            self._code = git_state(Path(file)) if file else self._code

    def _write_inputs(self, run: "MlflowRun", config: DictConfig) -> None:
        """Keep the configuration, the overrides and the uncommitted changes of the code."""
        from mnist_sweep.tracking import job_record

        def write(folder: Path) -> None:
            OmegaConf.save(job_record.settings(config), folder / "config.yaml")
            (folder / "overrides.txt").write_text("\n".join(job_record.overrides(config)))
            (folder / "code.diff").write_text(self._code[1])

        run.log_artifacts(write)


@contextmanager
def _not_fatal(what: str) -> Iterator[None]:
    """Turn an error into a line of the log. Hydra would print a warning of several lines."""
    try:
        yield
    except Exception as error:
        log.warning("%s: %s", what, one_line(error, with_kind=not isinstance(error, UserError)))


def _objectives(sweep: Sweep) -> dict[str, str]:
    """Return the direction of each objective by its name."""
    if hasattr(sweep, "objectives"):
        return dict(sweep.objectives)
    return dict(sweep.config.sweep.objectives or {sweep.config.objective: sweep.config.direction})


def _copy(files: Sequence[Path], directory: Path, target: Path) -> None:
    for path in files:
        copied = target / OUTPUTS / path.relative_to(directory)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copied)
