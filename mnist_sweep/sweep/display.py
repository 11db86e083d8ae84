"""The terminal output of a sweep: preview, progress, and the summary at the end."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from omegaconf import OmegaConf
from optuna.trial import FrozenTrial, TrialState
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mnist_sweep.common.console import console
from mnist_sweep.common.console import table as as_table
from mnist_sweep.sweep import optuna_internals, results
from mnist_sweep.sweep import study as storage
from mnist_sweep.sweep.coordinator import LOOK_S, Coordinator
from mnist_sweep.sweep.importances import importances
from mnist_sweep.sweep.overrides import from_text
from mnist_sweep.sweep.plan import Plan
from mnist_sweep.sweep.results import About, assignments
from mnist_sweep.sweep.study import DONE, get_trials, own_failure

log = logging.getLogger(__name__)

MAX_ROWS = 20


def preview(points: Sequence[dict[str, Any]], fixed: Sequence[str], *, grid: bool) -> None:
    """Print the trials of a dry run.

    Args:
        fixed: overrides of every trial.
    """
    what = f"all {len(points)} trials of the grid" if grid else "the first trials of the search"
    print(f"Preview: {what}. Nothing runs.")
    print(f"Fixed settings: {' '.join(fixed) or 'the defaults'}")
    for number, point in enumerate(points):
        print(f"{number:4d}  {assignments(point)}")


@contextmanager
def live(coordinator: Coordinator) -> Iterator[None]:
    """Show the progress while the block runs: a table, or without a terminal a line for each trial."""
    over, plan = threading.Event(), coordinator.plan
    show = _live_table if console.is_terminal else _live_lines
    thread = threading.Thread(target=show, args=(coordinator, over), daemon=True)
    log.info("sweep %s: %d trials, in %s", plan.study_name, plan.n_trials, plan.directory)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _live_lines(coordinator: Coordinator, over: threading.Event) -> None:
    plan = coordinator.plan
    printed = {t.number for t in coordinator.trials if t.state.is_finished()}
    while True:
        last = over.wait(LOOK_S)
        trials = coordinator.trials
        for trial in trials:
            ended = trial.state.is_finished() and trial.number not in printed
            if ended and trial.user_attrs.get(storage.REPLACED) != storage.SURPLUS:
                printed.add(trial.number)
                done = sum(t.state in DONE and t.number in printed for t in trials)
                log.info("[%d/%d] %s", done, plan.n_trials, _line(trial, plan))
        if last:
            return


def _live_table(coordinator: Coordinator, over: threading.Event) -> None:
    plan, patience = coordinator.plan, optuna_internals.backend(coordinator.study).patience
    started, before = time.monotonic(), plan.finished(coordinator.trials)
    with Live(console=console, refresh_per_second=2, transient=True) as view:
        while not over.wait(LOOK_S):
            trials = coordinator.trials
            table = Table(box=None, pad_edge=False)
            for column in ("trial", "epoch", plan.metrics[0], "seconds", "parameters"):
                table.add_column(column)
            for t in trials:
                if t.state is TrialState.RUNNING:
                    epoch = t.last_step or 0
                    value = f"{t.intermediate_values[epoch]:.4f}" if epoch else ""
                    seconds = time.time() - t.datetime_start.timestamp() if t.datetime_start else 0
                    row = (str(t.number), str(epoch), value, f"{seconds:.0f}")
                    table.add_row(*row, assignments(t.params))
            finished = plan.finished(trials)
            rate = (finished - before) / (time.monotonic() - started)
            left = f", about {(plan.n_trials - finished) / rate:.0f} s left" if rate else ""
            head = f"{plan.study_name}: {_counts(trials)} of {plan.n_trials}{left}"
            best = _best_of(trials, coordinator.study)
            tail = f"best so far: {_line(best, plan)}" if best else ""
            parts: list[Any] = [Text(head, style="bold"), table, Text(tail, style="green")]
            if patience.waiting_for is not None:
                waited = time.monotonic() - patience.since
                away = f"waiting for the database for {waited:.0f} s: {patience.waiting_for}"
                parts.append(Text(away, style="red"))
            view.update(Group(*parts))


def summary(study: optuna.Study, plan: Plan, links: Mapping[str, str]) -> None:
    """Print the leaderboard, the best trial, the failures and the links; save the best parameters."""
    trials = [t for t in get_trials(study) if storage.REPLACED not in t.user_attrs]
    log.info("\nsweep %s: %s", plan.study_name, _counts(get_trials(study)))
    rows = results.leaderboard(study) if results.has_objective(study) else []
    if rows:
        log.info(as_table(list(rows[0]), [list(row.values()) for row in rows[:MAX_ROWS]]))
    if len(rows) > MAX_ROWS:
        log.info("... and %d more", len(rows) - MAX_ROWS)
    failed = Counter(t.user_attrs.get(storage.ERROR, "unknown") for t in plan.failed(trials))
    for why, times in failed.most_common():
        log.info("failed %dx: %s", times, why.splitlines()[0])
    if not get_trials(study, TrialState.COMPLETE):
        log.info("no trial completed")
    elif not rows:
        log.info("the task returns nothing to compare; the trials are in %s", plan.directory)
    elif len(plan.metrics) == 1:
        log.info("\nbest: %s", _line(study.best_trial, plan))
        log.info("train it again: %s", About.of(study).command(study.best_trial.params))
        if shares := importances(study):
            log.info("parameter importances: %s", shares)
    else:
        log.info("\n%d trials on the Pareto front:", len(study.best_trials))
        for trial in study.best_trials:
            log.info("  %s", _line(trial, plan))
    _save_results(study, plan)
    for label, link in links.items():
        log.info("\n%s: %s", label, link)


def _save_results(study: optuna.Study, plan: Plan) -> None:
    """Write optimization_results.yaml with the keys of the stock Optuna sweeper."""
    content: dict[str, Any] = {"name": "optuna", "study": plan.study_name}
    if len(plan.metrics) > 1:
        best_trials = study.best_trials
        content["solutions"] = [{"params": _values(t), "values": t.values} for t in best_trials]
    elif results.has_objective(study):
        best = study.best_trial
        content |= {"best_params": _values(best), "best_value": best.value}
    OmegaConf.save(OmegaConf.create(content), plan.directory / "optimization_results.yaml")


def _values(trial: FrozenTrial) -> dict[str, Any]:
    """The parameters as the task received them."""
    return {k: from_text(v) if isinstance(v, str) else v for k, v in trial.params.items()}


def _best_of(trials: list[FrozenTrial], study: optuna.Study) -> FrozenTrial | None:
    """The best of these trials; None with several objectives. It does not touch the database."""
    complete = [
        t for t in trials if t.state is TrialState.COMPLETE and storage.NO_VALUE not in t.user_attrs
    ]
    if len(study.directions) > 1 or not complete:
        return None
    sign = 1 if results.maximizes(study) else -1
    return max(complete, key=lambda t: sign * t.values[0])


def _line(trial: FrozenTrial, plan: Plan) -> str:
    state = trial.user_attrs.get(storage.REPLACED, trial.state.name.lower())
    values = trial.values or [v for v in [_last_value(trial)] if v is not None]
    if storage.NO_VALUE in trial.user_attrs:
        values = []
    parts = [
        f"trial {trial.number} {state}",
        *(f"{name} {value:.4f}" for name, value in zip(plan.metrics, values, strict=False)),
        assignments(trial.params),
        trial.user_attrs.get(storage.ERROR, "") if own_failure(trial) else "",
    ]
    return "  ".join(filter(None, parts))


def _last_value(trial: FrozenTrial) -> float | None:
    return trial.intermediate_values.get(trial.last_step or 0)


def _counts(trials: list[FrozenTrial]) -> str:
    states = Counter(t.user_attrs.get(storage.REPLACED, t.state.name.lower()) for t in trials)
    return ", ".join(f"{n} {state}" for state, n in sorted(states.items())) or "no trials yet"
