"""What a person sees of a sweep: live, and at its end."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig, OmegaConf
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mnist_sweep.common.console import as_text, console
from mnist_sweep.common.console import table as as_table
from mnist_sweep.sweep import results
from mnist_sweep.sweep import study as storage
from mnist_sweep.sweep.results import assignments
from mnist_sweep.sweep.space import Space
from mnist_sweep.sweep.study import DONE, own_failure, trials
from mnist_sweep.sweep.worker import Plan

log = logging.getLogger(__name__)

POLL_S = 1.0
MAX_ROWS = 20


def dry_run(points: Sequence[dict[str, Any]], space: Space, *, grid: bool) -> None:
    what = f"all {len(points)} trials of the grid" if grid else "the first trials"
    print(f"dry run: {what}, and nothing else; they hold {' '.join(space.fixed) or 'the defaults'}")
    for number, point in enumerate(points):
        print(f"{number:4d}  {assignments(point)}")


@contextmanager
def live(study: optuna.Study, plan: Plan) -> Iterator[None]:
    """Show the sweep while the block runs: a table, or a line for every ended trial."""
    over = threading.Event()
    show = _live_table if console.is_terminal else _live_lines
    thread = threading.Thread(target=show, args=(study, plan, over), daemon=True)
    log.info("sweep %s: %d trials, in %s", plan.study_name, plan.n_trials, plan.directory)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _live_lines(study: optuna.Study, plan: Plan, over: threading.Event) -> None:
    told = {t.number for t in trials(study) if t.state.is_finished()}
    while True:
        last = over.wait(POLL_S)
        found = trials(study)
        for trial in found:
            ended = trial.state.is_finished() and trial.number not in told
            if ended and trial.user_attrs.get(storage.REPLACED) != storage.SURPLUS:
                told.add(trial.number)
                done = sum(t.state in DONE and t.number in told for t in found)
                log.info("[%d/%d] %s", done, plan.n_trials, _line(trial, plan))
        if last:
            return


def _live_table(study: optuna.Study, plan: Plan, over: threading.Event) -> None:
    started, before = time.monotonic(), plan.finished(trials(study))
    with Live(console=console, refresh_per_second=2, transient=True) as view:
        while not over.wait(POLL_S):
            found = trials(study)
            table = Table(box=None, pad_edge=False)
            for column in ("trial", "epoch", plan.metrics[0], "seconds", "parameters"):
                table.add_column(column)
            for t in found:
                if t.state is TrialState.RUNNING:
                    epoch = t.last_step or 0
                    value = f"{t.intermediate_values[epoch]:.4f}" if epoch else ""
                    seconds = time.time() - t.datetime_start.timestamp() if t.datetime_start else 0
                    row = (str(t.number), str(epoch), value, f"{seconds:.0f}")
                    table.add_row(*row, assignments(t.params))
            finished = plan.finished(found)
            rate = (finished - before) / (time.monotonic() - started)
            left = f", about {(plan.n_trials - finished) / rate:.0f} s left" if rate else ""
            head = f"{plan.study_name}: {_counts(found)} of {plan.n_trials}{left}"
            best = _best(study)
            tail = f"best so far: {_line(best, plan)}" if best else ""
            view.update(Group(Text(head, style="bold"), table, Text(tail, style="green")))


def conclusion(
    study: optuna.Study, plan: Plan, config: DictConfig, link: str, page: Path | None
) -> None:
    """The table of all trials, what the seeds say, the best, and how to go on."""
    found = [t for t in trials(study) if storage.REPLACED not in t.user_attrs]
    log.info("\nsweep %s: %s", plan.study_name, _counts(trials(study)))
    log.info(as_text(_leaderboard(study, found, plan, config)))
    if seeds := _over_seeds(study):
        log.info("\n%s", seeds)
    failed = Counter(t.user_attrs.get(storage.ERROR, "unknown") for t in plan.failed(found))
    for why, times in failed.most_common():
        log.info("failed %dx: %s", times, why.splitlines()[0])
    if not any(t.state is TrialState.COMPLETE for t in found):
        log.info("no trial completed, so there is no best one")
    elif len(plan.metrics) == 1:
        log.info("\nbest: %s", _line(study.best_trial, plan))
        again = results.About.of(study).command(study.best_trial.params)
        log.info("train it again: %s", again)
        if importances := _importances(study):
            shares = ", ".join(f"{name} {share:.0%}" for name, share in importances.items())
            log.info("importance of the parameters: %s", shares)
    else:
        log.info("\n%d trials on the Pareto front:", len(study.best_trials))
        for trial in study.best_trials:
            log.info("  %s", _line(trial, plan))
    _save_results(study, plan)
    if page:
        log.info("\nreport: %s", page.as_uri())
    if link:
        log.info("compare the runs: %s", link)


def _leaderboard(
    study: optuna.Study, found: list[FrozenTrial], plan: Plan, config: DictConfig
) -> Table:
    sign = -1 if study.directions[0] is StudyDirection.MAXIMIZE else 1
    ranked = sorted(found, key=lambda t: (_value(t) is None, sign * (_value(t) or 0)))
    table = Table(box=None, pad_edge=False)
    table.add_column("trial", justify="right")
    table.add_column("model")
    table.add_column("parameters")
    for name in ("val acc %", "test acc %", "weights", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("state")
    for t in ranked[:MAX_ROWS]:
        run = t.user_attrs.get(storage.SUMMARY, {})
        table.add_row(
            str(t.number),
            str(t.params.get("model", config.hydra.runtime.choices.get("model"))),
            assignments({k: v for k, v in t.params.items() if k != "model"}),
            _percent(run.get("best/val/accuracy")),
            _percent(run.get("test/accuracy")),
            f"{run['n_parameters']:,.0f}" if "n_parameters" in run else "",
            f"{run['fit_s']:.1f}" if "fit_s" in run else "",
            t.state.name.lower(),
        )
    if len(ranked) > MAX_ROWS:
        table.add_row("", f"... and {len(ranked) - MAX_ROWS} more")
    return table


def _over_seeds(study: optuna.Study) -> str | None:
    """Mean and standard deviation of the configurations that ran with several seeds."""
    found = results.ranked(study)
    if not any(len(configuration.trials) > 1 for configuration in found):
        return None
    rows = []
    for each in found[:MAX_ROWS]:
        keys = ("best/val/accuracy", "test/accuracy")
        cells = [results.format_metric("accuracy", each.summaries(key)) for key in keys]
        rows.append((each.name, str(len(each.trials)), *cells))
    return as_table(("over seeds", "n", "val acc %", "test acc %"), rows)


def _save_results(study: optuna.Study, plan: Plan) -> None:
    """optimization_results.yaml, with the keys of the stock Optuna sweeper."""
    content: dict[str, Any] = {"name": "optuna", "study": plan.study_name}
    if len(plan.metrics) > 1:
        content["solutions"] = [{"params": t.params, "values": t.values} for t in study.best_trials]
    elif (best := _best(study)) is not None:
        content |= {"best_params": best.params, "best_value": best.value}
    OmegaConf.save(OmegaConf.create(content), plan.directory / "optimization_results.yaml")


def _importances(study: optuna.Study) -> dict[str, float]:
    complete = [t for t in trials(study) if t.state is TrialState.COMPLETE]
    if len(complete) < 4 or len({t.value for t in complete}) < 2 or not complete[0].params:
        return {}
    try:
        return optuna.importance.get_param_importances(study)
    except (ValueError, RuntimeError) as error:  # e.g. no parameter that all trials have
        log.debug("importances: %s", error)
        return {}


def _best(study: optuna.Study) -> FrozenTrial | None:
    one = len(study.directions) == 1
    complete = any(t.state is TrialState.COMPLETE for t in trials(study))
    return study.best_trial if one and complete else None


def _line(trial: FrozenTrial, plan: Plan) -> str:
    state = trial.user_attrs.get(storage.REPLACED, trial.state.name.lower())
    values = trial.values or [v for v in [_value(trial)] if v is not None]
    shown = "  ".join(f"{n} {v:.4f}" for n, v in zip(plan.metrics, values, strict=False))
    why = f"  {trial.user_attrs.get(storage.ERROR, '')}" if own_failure(trial) else ""
    return f"trial {trial.number} {state}  {shown}  {assignments(trial.params)}{why}".rstrip()


def _value(trial: FrozenTrial) -> float | None:
    """The first objective, of a pruned trial that of its last epoch."""
    if trial.values:
        return float(trial.values[0])
    return trial.intermediate_values.get(trial.last_step or 0)


def _counts(found: list[FrozenTrial]) -> str:
    states = Counter(t.user_attrs.get(storage.REPLACED, t.state.name.lower()) for t in found)
    return ", ".join(f"{n} {state}" for state, n in sorted(states.items())) or "nothing yet"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"
