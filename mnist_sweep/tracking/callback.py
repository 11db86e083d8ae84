"""The record of a sweep in MLflow, as a Hydra callback. Light: it imports mlflow when a sweep starts."""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from mnist_sweep.common.secrets import masked
from mnist_sweep.sweep import Sweep, SweepCallback

if TYPE_CHECKING:
    from mnist_sweep.sweep.callback import Study
    from mnist_sweep.tracking.recorder import RecordedRun
    from mnist_sweep.tracking.tracker import Tracker

log = logging.getLogger(__name__)


class RecordSweep(SweepCallback):
    """Keeps a sweep's own run (tag `kind=sweep`): its settings, its figures, its best model, its report."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # workers receive the callbacks too, and need nothing of this one

    def on_sweep_prepare(self, sweep: Sweep) -> None:
        config = sweep.config
        if config.tracking.enabled and not config.sweep.dry_run:
            from mnist_sweep.tracking.run import check_at_start, store_uri

            uri = store_uri(config.tracking.uri, config.store)
            check_at_start(uri, config.tracking.on_outage)

    def on_sweep_start(self, sweep: Sweep, study: "Study") -> None:
        config, settings = sweep.config, sweep.config.tracking
        self._stack = ExitStack()
        self._run: RecordedRun | None = None
        if not settings.enabled:
            return
        from mnist_sweep.tracking import provenance, recorder, run, view

        self.uri = run.store_uri(settings.uri, config.store)
        commit, diff = provenance.git_state()
        code = {"git.commit": commit, "git.diff": hashlib.sha256(diff.encode()).hexdigest()[:16]}
        _warn_of_changed_code(study.user_attrs.get("code", code), code)
        study.set_user_attr("code", code)
        opened = recorder.sweep_run(config, sweep.name, tags=code, directory=sweep.directory)
        self._run = self._stack.enter_context(opened)
        self._run.set_tags({view.OBJECTIVES: json.dumps(sweep.objectives)})
        # until trials are known; a conditional parameter may exist in none
        searched = [name for name in sweep.parameters if name not in config.sweep.when]
        self._run.set_tags({view.PARAMETERS: as_tag(searched)})
        self._run.log_artifacts(partial(_write_inputs, config=config, diff=diff))
        sweep.tags["git.commit"] = commit
        if self._run.flush():
            self._link(sweep)
        elif settings.nested:
            log.warning("WARNING: tracking.nested=true does nothing: the sweep's run has no id yet")

    def _link(self, sweep: Sweep) -> None:
        """Save the page that compares the trials, link to it, and nest the trials if that is asked for."""
        from mnist_sweep.sweep.results import COMPARE
        from mnist_sweep.tracking import links

        assert self._run is not None
        experiment_id = self._save_view()
        if sweep.config.tracking.nested and self._run.run_id is not None:
            sweep.tags["mlflow.parentRunId"] = self._run.run_id
        sweep.links[COMPARE] = links.comparison_link(
            self.uri, experiment_id, sweep.name, sweep.config.store
        )

    def on_sweep_end(self, sweep: Sweep, study: "Study", error: BaseException | None) -> None:
        if self._run is None:
            return
        try:
            if error is None:
                self._finish(sweep, study)
        finally:
            self._stack.__exit__(type(error) if error else None, error, None)
            self._settle(sweep, study, error)

    def _settle(self, sweep: Sweep, study: "Study", error: BaseException | None) -> None:
        """Send what the trials left over, and close the runs of trials that ended without closing them."""
        from mnist_sweep.sweep.study import get_trials
        from mnist_sweep.tracking import buffer, queries, run
        from mnist_sweep.tracking.retry import is_outage

        if error is not None and self._run is not None and self._run.is_away:
            return  # after Ctrl-C nobody wants to wait for a server
        store, experiment = sweep.config.store, sweep.config.tracking.experiment
        try:
            queries.check_server(self.uri)  # faster than MLflow's own retries
            buffer.send_left_over(self.uri, store)
            run.prepare(self.uri, store, experiment)  # closes the runs of workers that were killed
            if error is None:
                ended = [trial.number for trial in get_trials(study) if trial.state.is_finished()]
                run.close_lost_runs(self.uri, experiment, sweep.name, ended)
        except Exception as outage:
            if not is_outage(outage):
                raise
            log.warning(
                "WARNING: MLflow is away: %d records wait on disk. The same command with sweep.name=%s "
                "sends them.",
                len(list(buffer.left_over(self.uri, store))),
                sweep.name,
            )

    def _finish(self, sweep: Sweep, study: "Study") -> None:
        """Record the results and the report, register the best model."""
        assert self._run is not None
        record_study(self._run, sweep, study)
        if not self._run.flush():
            return
        self._save_view()
        try:
            self._register_best(sweep, study)
        except Exception as error:  # a registry that fails must not cost the sweep
            log.warning("the best model was not registered: %s", error)

    def _save_view(self) -> str:
        """Save the page of MLflow's UI that compares the trials; return the id of its experiment."""
        from mnist_sweep.tracking import view

        assert self._run is not None
        assert self._run.run_id is not None
        return view.update(self.uri, self._run.run_id)

    def _register_best(self, sweep: Sweep, study: "Study") -> None:
        from mnist_sweep.sweep import results
        from mnist_sweep.tracking import queries, registry

        settings = sweep.config.tracking
        if settings.register is None or not (configurations := results.ranked(study)):
            return
        best = configurations[0].trials[0].number
        run = queries.best_runs_of(self.uri, settings.experiment, sweep.name, [best]).get(best)
        version = registry.register(self.uri, settings.register, run, sweep.name) if run else None
        if version is not None:
            log.info("registered as %s version %s, the challenger", version.name, version.version)


def record_study(run: "Tracker", sweep: Sweep, study: "Study") -> None:
    """Record the results of a sweep in its own run: the figures, the best trial, the report."""
    from mnist_sweep.sweep.importances import importances
    from mnist_sweep.sweep.results import count_states
    from mnist_sweep.sweep.study import get_trials
    from mnist_sweep.tracking import view

    states = count_states(study)
    run.log_metrics({f"trials/{name}": float(n) for name, n in states.items()}, step=0)
    if states["complete"] and len(sweep.objectives) == 1:
        best, name = study.best_trial, next(iter(sweep.objectives))
        record_best(run, name, study.best_value, best.number, best.params)
    known = importances(study)
    drawn = {name for trial in get_trials(study) for name in trial.params}
    ranked = dict.fromkeys([*(known.shares if known else ()), *sweep.parameters])
    run.set_tags({view.PARAMETERS: as_tag([name for name in ranked if name in drawn])})
    if (report := sweep.directory / "report").is_dir():
        run.log_artifacts(partial(shutil.copytree, report, dirs_exist_ok=True))


def record_best(
    run: "Tracker", objective: str, value: float, number: int, params: Mapping[str, Any]
) -> None:
    """Record the best trial of a sweep in its own run."""
    run.log_metrics({f"best/{objective}": value}, step=0)
    run.set_tags({"best.trial": str(number), "best.params": json.dumps(dict(params))})


def as_tag(parameters: Sequence[str]) -> str:
    """Write the names of what was searched, the most important first."""
    return json.dumps([name.lstrip("+") for name in parameters])


def _warn_of_changed_code(before: dict[str, str], code: dict[str, str]) -> None:
    if before != code:
        same_commit = before["git.commit"] == code["git.commit"]
        log.warning(
            "WARNING: the code has changed since this sweep started (commit %s, now %s%s)",
            before["git.commit"][:12],
            code["git.commit"][:12],
            ", with other uncommitted changes" if same_commit else "",
        )


def _write_inputs(folder: Path, config: DictConfig, diff: str) -> None:
    settings = masked(OmegaConf.to_container(config.sweep, resolve=True))
    OmegaConf.save(settings, folder / "sweep.yaml")
    (folder / "code.diff").write_text(diff)
