"""The sweep's own run in MLflow: what it was of, what came out, Optuna's figures."""

import hashlib
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig, OmegaConf
from optuna.trial import TrialState

from mnist_sweep.common.errors import without_password
from mnist_sweep.sweep import results
from mnist_sweep.sweep.study import count, trials
from mnist_sweep.sweep.worker import Plan
from mnist_sweep.tracking import provenance

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepRecord:
    """The run of tag `kind=sweep`."""

    tracker: Any
    plan: Plan
    config: DictConfig
    uri: str
    link: str

    def finish(self, study: optuna.Study, kept: set[int] | None) -> None:
        """What came out; the best model goes to the registry, those of trials not `kept` go."""
        if kept is not None:
            self._drop_models(kept)
        found = trials(study)
        states = {s.name.lower(): float(count(found, s)) for s in TrialState if s.is_finished()}
        metrics = {f"trials/{name}": n for name, n in states.items()}
        if states["complete"] and len(self.plan.metrics) == 1:
            metrics[f"best/{self.plan.metrics[0]}"] = study.best_value
        self.tracker.log_metrics(metrics, step=0)
        try:
            self._register_best(study)
        except Exception as error:  # the trials are safe all the same
            log.warning("the best model was not registered: %s", error)

    def _register_best(self, study: optuna.Study) -> None:
        from mnist_sweep.tracking import queries as recorded
        from mnist_sweep.tracking import registry

        settings, sweep = self.config.tracking, self.plan.study_name
        if settings.register is None or not (found := results.ranked(study)):
            return
        best = found[0].trials[0].number
        run = recorded.best_runs_of(self.uri, settings.experiment, sweep, [best]).get(best)
        version = registry.register(self.uri, settings.register, run, sweep) if run else None
        if version is not None:
            log.info("registered as %s version %s, the challenger", version.name, version.version)

    def _drop_models(self, kept: set[int]) -> None:
        from mnist_sweep.tracking import queries as recorded

        client = self.tracker.client
        for run in recorded.trial_runs(client, self.tracker.run_id, self.plan.study_name):
            if int(run.data.tags["trial"]) not in kept:
                recorded.delete_models(client, run)

    def keep_report(self, folder: Path) -> None:
        self.tracker.log_artifacts(partial(shutil.copytree, folder, dirs_exist_ok=True))


@contextmanager
def of_sweep(config: DictConfig, plan: Plan, study: optuna.Study) -> Iterator[SweepRecord | None]:
    """The sweep's run, new or reopened, closed when the block ends; None where nothing is tracked."""
    if not config.tracking.enabled:
        yield None
        return
    from mnist_sweep.tracking import queries as recorded  # imports mlflow
    from mnist_sweep.tracking import run as tracking

    uri = tracking.store_uri(config.tracking.uri, config.store)
    experiment_id = tracking.prepare(uri, config.store, config.tracking.experiment)
    commit, diff = provenance.git_state()
    code = {"git.commit": commit, "git.diff": hashlib.sha256(diff.encode()).hexdigest()[:16]}
    before = study.user_attrs.get("code", code)
    if before != code:
        log.warning(
            "the code is not what this sweep was begun with (commit %s, now %s%s)",
            before["git.commit"][:12],
            commit[:12],
            ", or uncommitted changes differ" if before["git.commit"] == commit else "",
        )
    study.set_user_attr("code", code)
    try:
        with tracking.sweep_run(uri, experiment_id, plan.study_name, tags=code) as tracker:
            tracker.log_artifacts(partial(_write_inputs, config=config, diff=diff))
            plan.tags["git.commit"] = commit
            if config.tracking.nested:
                plan.tags["mlflow.parentRunId"] = tracker.run_id
            link = recorded.comparison_link(uri, experiment_id, plan.study_name, config.store)
            yield SweepRecord(tracker, plan, config, uri, link)
    finally:  # the runs of workers that were killed
        tracking.prepare(uri, config.store, config.tracking.experiment)


def _write_inputs(folder: Path, config: DictConfig, diff: str) -> None:
    settings = without_password(OmegaConf.to_yaml(config.sweep, resolve=True))
    (folder / "sweep.yaml").write_text(settings)
    (folder / "code.diff").write_text(diff)
