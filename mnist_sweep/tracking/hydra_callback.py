"""Records the jobs and the sweeps of any Hydra application in MLflow, as a Hydra callback.

`hydra/callbacks=mlflow` selects it. Light: it imports mlflow when the first job or sweep starts.
"""

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn
from hydra.types import TaskFunction
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from mnist_sweep.common.errors import UserError, one_line
from mnist_sweep.common.processes import process_identity
from mnist_sweep.common.secrets import check_url, mask_url
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
PATIENCE_S = 10  # how long a call waits for a store that is locked or away
SQLITE = "sqlite:///"


@dataclass(frozen=True)
class _JobsOfSweep:
    """What a job has to know of its sweep."""

    name: str
    objectives: Mapping[str, str]  # metric -> direction; empty if unknown


@dataclass(frozen=True)
class _OpenRun:
    """A run of MLflow that is open, and its store."""

    run: "MlflowRun"
    uri: str


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
        self._has_secret = False  # the URL was left out when this was pickled
        self._code = ("none", "")  # commit and diff of the application
        self._sweep: _JobsOfSweep | None = None
        self._sweep_run: _OpenRun | None = None
        self._job_run: _OpenRun | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Workers receive the callbacks too, some through a file. What is open stays in its process.

        A URL with a password stays out of that file. The worker reads it again.
        """
        state = {**self.__dict__, "_sweep_run": None, "_job_run": None}
        if self.uri and mask_url(self.uri) != self.uri:
            state |= {"uri": None, "_has_secret": True}
        return state

    def _read_secret(self, config: DictConfig) -> None:
        """Read the URL that was left out of the file."""
        if self._has_secret and self.uri is None:
            from_config = self.key == KEY
            self.uri = OmegaConf.select(config, KEY) if from_config else os.environ[self.key]

    # Jobs

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        with _not_fatal("the code is not recorded"):
            self._find_code()

    def on_job_start(self, config: DictConfig, *, task_function: TaskFunction, **_: Any) -> None:
        with _not_fatal("this job is not recorded in MLflow"):
            self._read_secret(config)
            self._find_code(task_function)
            self._job_run = self._start_job(config)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        from mnist_sweep.tracking.run import deactivate

        job, self._job_run = self._job_run, None
        if job is None:
            return
        deactivate()
        error = job_error(job_return)
        returned = job_return.return_value if error is None else None
        with _not_fatal("the end of this job is not recorded in MLflow"):
            self._close(job, error, lambda: self._record_results(job.run, config, returned))

    def _start_job(self, config: DictConfig) -> _OpenRun:
        from mnist_sweep.tracking import job_record
        from mnist_sweep.tracking.run import activate

        trial = self._trial(config)
        tags = {
            "overrides": " ".join(job_record.overrides(config))[:MAX_TAG],
            "directory": str(config.hydra.runtime.output_dir),
        }
        if trial.number is not None:
            tags |= {"sweep": str(trial.sweep), "trial": str(trial.number), **trial.tags}
        name = names.run_name(trial, config.hydra.job.name)
        job = self._open(config, name, tags)
        with _not_fatal("what the task logs is not in the run of this job"):
            activate(job.run)
        with _not_fatal("the parameters of this job are not recorded"):
            job.run.log_params(job_record.params(config, trial.params))
        return job

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

    def on_sweep_prepare(self, sweep: Sweep) -> None:
        # mlflow is imported once for all workers
        sweep.settings.preload.append("mnist_sweep.tracking.run")

    def on_sweep_start(self, sweep: Sweep, study: "Study") -> None:
        with _not_fatal("the sweep itself is not recorded in MLflow"):
            self._sweep = _JobsOfSweep(sweep.name, sweep.objectives)
            self._sweep_run = self._start_sweep(sweep.config, self._sweep, sweep.parameters)
            sweep.links["compare the runs"] = self._link(self._sweep_run, sweep.name)

    def on_sweep_end(self, sweep: Sweep, study: "Study", error: BaseException | None) -> None:
        from mnist_sweep.tracking.callback import record_study

        own = self._sweep_run

        def record() -> None:
            assert own is not None
            if error is None:
                record_study(own.run, sweep, study)
                self._link(own, sweep.name)  # the page shows the most important parameters now

        self._end_sweep(error, record)

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
            parameters = job_record.swept(config)
            self._sweep_run = self._start_sweep(config, self._sweep, parameters)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        own, jobs = self._sweep_run, self._sweep

        def record() -> None:
            assert own is not None
            assert jobs is not None
            self._record_jobs(own, jobs)
            log.info("compare the runs: %s", self._link(own, jobs.name))

        error = sys.exc_info()[1]  # Hydra calls this in a `finally`
        self._end_sweep(error, record)

    def _record_jobs(self, own: _OpenRun, sweep: _JobsOfSweep) -> None:
        """Record what the jobs' own runs say about a sweep that has no study."""
        from mnist_sweep.tracking import view
        from mnist_sweep.tracking.callback import record_best
        from mnist_sweep.tracking.job_record import RETURN_VALUE
        from mnist_sweep.tracking.queries import IS_TRIAL, find_runs, tag_is

        client = own.run.client
        summary = client.get_run(own.run.run_id)
        query = f"{tag_is('sweep', sweep.name)} AND {IS_TRIAL}"
        jobs = list(find_runs(client, [summary.info.experiment_id], query))
        complete = [job for job in jobs if job.info.status == "FINISHED"]
        counts = {"trials/complete": len(complete), "trials/fail": len(jobs) - len(complete)}
        own.run.log_metrics(counts, step=0)
        scored = [job for job in complete if RETURN_VALUE in job.data.metrics]
        if not scored or not sweep.objectives:
            return
        pick = max if sweep.objectives[RETURN_VALUE] == "maximize" else min
        best = pick(scored, key=lambda job: job.data.metrics[RETURN_VALUE])
        swept = json.loads(summary.data.tags[view.PARAMETERS])
        params = {name: best.data.params[name] for name in swept if name in best.data.params}
        value, number = best.data.metrics[RETURN_VALUE], int(best.data.tags["trial"])
        record_best(own.run, RETURN_VALUE, value, number, params)

    # Both kinds of sweeps

    def _start_sweep(
        self, config: DictConfig, sweep: _JobsOfSweep, parameters: Sequence[str]
    ) -> _OpenRun:
        """Open the sweep's own run. A sweep that resumes reopens its run."""
        from mnist_sweep.tracking import job_record, view
        from mnist_sweep.tracking.callback import as_tag

        # MLflow's page has to order the runs even if the direction is unknown
        objectives = dict(sweep.objectives or {job_record.RETURN_VALUE: "minimize"})
        identity = {"kind": "sweep", "sweep": sweep.name}
        tags = {
            **identity,
            view.OBJECTIVES: json.dumps(objectives),
            view.PARAMETERS: as_tag(parameters),
        }
        own = self._open(config, f"sweep {sweep.name}", tags, identity)
        own.run.reopen()
        return own

    def _end_sweep(self, error: BaseException | None, record: Callable[[], None]) -> None:
        """Close the sweep's own run, if it has one, with what `record` records."""
        from mnist_sweep.tracking.run import close_dead_runs

        own, self._sweep_run = self._sweep_run, None
        if own is None:
            return
        with _not_fatal("the end of the sweep is not recorded in MLflow"):
            self._close(own, error, record)
            experiment_id = own.run.client.get_run(own.run.run_id).info.experiment_id
            close_dead_runs(own.run.client, experiment_id)  # of workers that were killed

    # The store and the code

    def _open(
        self,
        config: DictConfig,
        name: str,
        tags: Mapping[str, str],
        identity: Mapping[str, str] | None = None,
    ) -> _OpenRun:
        """Open a run and record what it is made with.

        Args:
            identity: tags that no other run has, to find the run if it exists; None: it does not.
        """
        from mnist_sweep.tracking.provenance import code_tags
        from mnist_sweep.tracking.run import open_run, prepare

        uri = self._uri(config)
        experiment_id = prepare(uri, self.store, self.experiment or config.hydra.job.name)
        tags = {**process_identity(), **code_tags(self._code), **self.tags, **tags}
        run = open_run(
            uri,
            experiment_id,
            name=name,
            tags=tags,
            identity=identity,
            patience_s=PATIENCE_S,
        )
        with _not_fatal("the configuration and the code are not recorded"):
            run.set_tags(tags)
            self._write_inputs(run, config)
        return _OpenRun(run, uri)

    def _close(
        self, opened: _OpenRun, error: BaseException | None, record: Callable[[], None]
    ) -> None:
        """Call `record` and end a run: FINISHED, after an exception FAILED, after a signal KILLED.

        Raises:
            UserError: the server is away. MLflow would try for minutes.
        """
        from mnist_sweep.tracking.queries import check_server
        from mnist_sweep.tracking.run import closing

        check_server(opened.uri, self.key)
        traceback = error.__traceback__ if error else None
        try:
            with closing(opened.run, opened.uri):
                with _not_fatal("the results are not recorded"):
                    record()
                if error is not None:
                    raise error
        except BaseException as raised:
            if raised is not error:
                raise
            error.__traceback__ = traceback  # Hydra shows it

    def _uri(self, config: DictConfig) -> str:
        """Return the URI of the store, which answers.

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
        return uri

    def _link(self, own: _OpenRun, sweep: str) -> str:
        """Save the page that compares the jobs of a sweep, and return its link."""
        from mnist_sweep.tracking import links, view

        experiment_id = view.update(own.uri, own.run.run_id)
        return links.comparison_link(own.uri, experiment_id, sweep, os.path.relpath(self.store))

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


def _copy(files: Sequence[Path], directory: Path, target: Path) -> None:
    for path in files:
        copied = target / OUTPUTS / path.relative_to(directory)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copied)
