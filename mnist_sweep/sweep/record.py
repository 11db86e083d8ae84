"""The sweep's own run in MLflow: what it was of, what came out, Optuna's figures."""

import hashlib
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import optuna
from omegaconf import DictConfig, OmegaConf
from optuna.trial import TrialState

from mnist_sweep import provenance
from mnist_sweep.errors import without_password
from mnist_sweep.sweep import results
from mnist_sweep.sweep.storage import count, trials
from mnist_sweep.sweep.worker import Plan

log = logging.getLogger(__name__)


class SweepRecord:
    """Records nothing."""

    trial_tags: Mapping[str, str] = MappingProxyType({})
    link = ""
    uri: str | None = None

    def finish(self, study: optuna.Study) -> None:
        pass

    def register_best(self, study: optuna.Study) -> None:
        """The best trial's model in MLflow's registry, as `tracking.register` says."""

    def keep_report(self, folder: Path) -> None:
        """A copy of all files of this folder."""

    def keep_models(self, numbers: set[int]) -> None:
        """Of the trials with these numbers; the logged models of all others go."""


class MlflowSweepRecord(SweepRecord):
    def __init__(
        self,
        tracker: Any,
        plan: Plan,
        config: DictConfig,
        *,
        trial_tags: Mapping[str, str],
        link: str,
        uri: str,
    ) -> None:
        self.tracker, self.plan, self.config = tracker, plan, config
        self.trial_tags, self.link, self.uri = trial_tags, link, uri

    def finish(self, study: optuna.Study) -> None:
        found = trials(study)
        states = {s.name.lower(): float(count(found, s)) for s in TrialState if s.is_finished()}
        metrics = {f"trials/{name}": n for name, n in states.items()}
        if states["complete"] and len(self.plan.metrics) == 1:
            metrics[f"best/{self.plan.metrics[0]}"] = study.best_value
        self.tracker.log_metrics(metrics, step=0)

    def register_best(self, study: optuna.Study) -> None:
        from mnist_sweep import recorded, registry

        settings = self.config.tracking
        if settings.register is None or not (found := results.ranked(study)):
            return
        best = found[0].trials[0].number
        sweep = self.plan.study_name
        assert self.uri is not None
        run = recorded.best_runs_of(self.uri, settings.experiment, sweep, [best]).get(best)
        version = registry.register(self.uri, settings.register, run, sweep) if run else None
        if version is not None:
            log.info("registered as %s version %s, the challenger", version.name, version.version)

    def keep_report(self, folder: Path) -> None:
        self.tracker.log_artifacts(partial(shutil.copytree, folder, dirs_exist_ok=True))

    def keep_models(self, numbers: set[int]) -> None:
        from mnist_sweep import recorded

        trial_runs = recorded.trial_runs(
            self.tracker.client, self.tracker.run_id, self.plan.study_name
        )
        for run in trial_runs:
            if int(run.data.tags["trial"]) not in numbers:
                recorded.delete_models(self.tracker.client, run)


@contextmanager
def of_sweep(config: DictConfig, plan: Plan, study: optuna.Study) -> Iterator[SweepRecord]:
    """The run of tag `kind=sweep`, new or reopened, closed when the block ends."""
    if not config.tracking.enabled:
        yield SweepRecord()
        return
    from mnist_sweep import recorded, tracking  # imports mlflow

    uri = tracking.store_uri(config.tracking.uri, config.store)
    experiment_id = tracking.prepare(uri, config.store, config.tracking.experiment)
    commit, diff = provenance.git_state()
    code = {"git.commit": commit, "git.diff": hashlib.sha256(diff.encode()).hexdigest()[:16]}
    before = study.user_attrs.get("code")
    if before and before != code:
        log.warning(
            "the code is not what this sweep was begun with (commit %s, now %s%s)",
            before["git.commit"][:12],
            commit[:12],
            ", or uncommitted changes differ" if before["git.commit"] == commit else "",
        )
    study.set_user_attr("code", code)
    try:
        with tracking.sweep_run(uri, experiment_id, plan.study_name, tags=code) as tracker:
            tracker.log_artifacts(lambda folder: _write_inputs(folder, config, diff))
            trial_tags = {"git.commit": commit}
            if config.tracking.nested:
                trial_tags["mlflow.parentRunId"] = tracker.run_id
            link = recorded.comparison_link(uri, experiment_id, plan.study_name, config.store)
            yield MlflowSweepRecord(
                tracker, plan, config, trial_tags=trial_tags, link=link, uri=uri
            )
    finally:  # the runs of workers that were killed
        tracking.prepare(uri, config.store, config.tracking.experiment)


def _write_inputs(folder: Path, config: DictConfig, diff: str) -> None:
    settings = without_password(OmegaConf.to_yaml(config.sweep, resolve=True))
    (folder / "sweep.yaml").write_text(settings)
    (folder / "code.diff").write_text(diff)
