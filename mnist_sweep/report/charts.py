"""The interactive Plotly charts of the report."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import optuna
import plotly.graph_objects as go
from optuna import visualization
from optuna.trial import TrialState

from mnist_sweep.analysis import figures
from mnist_sweep.sweep import results
from mnist_sweep.sweep.importances import Importances, importances
from mnist_sweep.sweep.results import About, Configuration
from mnist_sweep.sweep.study import get_trials
from mnist_sweep.tracking.queries import History

log = logging.getLogger(__name__)


class Chart(NamedTuple):
    name: str  # unique, an HTML id
    title: str
    figure: go.Figure


def draw_charts(
    study: optuna.Study,
    about: About,
    configurations: Sequence[Configuration],
    histories: Mapping[str, History],
) -> list[Chart]:
    """Draw the charts for which the sweep has enough data.

    Args:
        configurations: best first.
        histories: {run name: loss curves}.
    """
    score, maximize = about.metrics[0], results.maximizes(study)
    charts = []
    if histories:
        title = "Learning curves of the best runs (validation solid, training dotted)"
        charts.append(Chart("learning_curves", title, learning_curves(histories)))
    for name, title, metric, axis in (
        ("against_parameters", "model size", "n_parameters", "parameters of the model"),
        ("against_seconds", "training time", "fit_s", "seconds of training and validation"),
    ):
        points = cost_points(configurations, metric)
        if len(points) > 1:
            figure = trade_off(points, cost=axis, score=score, maximize=maximize)
            charts.append(Chart(name, f"{score} against {title}", figure))
    if shares := importances(study):
        at = f" at epoch {shares.step}" if shares.step else ""
        title = f"Parameter importances ({shares.n_trials} trials{at})"
        charts.append(Chart("param_importances", title, importance_bars(shares)))
    return [*charts, *optuna_charts(study, about)]


def importance_bars(importances: Importances) -> go.Figure:
    """Draw each parameter's share of the variance of the objective, the largest on top."""
    names, shares = list(importances.shares), list(importances.shares.values())
    figure = go.Figure(go.Bar(x=shares, y=names, orientation="h", marker_color=figures.BLUE))
    figure.update_layout(xaxis_title="share of the variance", xaxis_tickformat=".0%")
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure


def learning_curves(histories: Mapping[str, History]) -> go.Figure:
    """Draw the loss of each run by epoch: validation solid, training dotted."""
    figure = go.Figure()
    for i, (name, history) in enumerate(histories.items()):
        for metric, dash in (("train/loss", "dot"), ("val/loss", "solid")):
            figure.add_scatter(
                x=[step for step, _ in history[metric]],
                y=[value for _, value in history[metric]],
                mode="lines+markers",
                line={"color": figures.COLOURS[i % len(figures.COLOURS)], "dash": dash},
                name=results.shorten(name),
                legendgroup=name,
                showlegend=metric == "val/loss",
            )
    figure.update_layout(xaxis_title="epoch", yaxis_title="loss (cross-entropy)")
    figure.update_yaxes(type="log")
    return figure


class CostPoint(NamedTuple):
    """Cost and score of a configuration, averaged over its seeds."""

    cost: float
    score: float
    name: str


def cost_points(configurations: Sequence[Configuration], metric: str) -> list[CostPoint]:
    """Return the points of the configurations that recorded the cost `metric`, cheapest first."""
    costs = ((each, each.summaries(metric)) for each in configurations)
    points = [CostPoint(sum(c) / len(c), each.score, each.name) for each, c in costs if c]
    return sorted(points, key=lambda point: point.cost)


def pareto_front(points: Sequence[CostPoint], *, maximize: bool) -> list[CostPoint]:
    """Return the points that score better than all cheaper ones. `points` are cheapest first."""
    sign = 1 if maximize else -1
    front: list[CostPoint] = []
    for point in points:
        if not front or sign * point.score > sign * front[-1].score:
            front.append(point)
    return front


def trade_off(points: Sequence[CostPoint], *, cost: str, score: str, maximize: bool) -> go.Figure:
    """Draw score against cost, and the Pareto front of the two."""
    figure = go.Figure()
    for series, name, colour, mode in (
        (points, "configurations", figures.BLUE, "markers"),
        (pareto_front(points, maximize=maximize), "Pareto front", figures.ORANGE, "lines+markers"),
    ):
        figure.add_scatter(
            x=[point.cost for point in series],
            y=[point.score for point in series],
            text=[point.name for point in series],
            hovertemplate="%{text}<br>%{x:,.4g}, %{y:.4f}<extra></extra>",
            mode=mode,
            name=name,
            marker={"color": colour},
        )
    figure.update_layout(xaxis_title=cost, yaxis_title=score)
    figure.update_xaxes(type="log")
    return figure


def optuna_charts(study: optuna.Study, about: About) -> Iterator[Chart]:
    """Draw those of Optuna's own charts that fit the study."""
    if len(get_trials(study, TrialState.COMPLETE)) < 2:
        return
    first: dict[str, Any] = {"target_name": about.metrics[0]}
    if len(about.metrics) > 1:
        yield from _optuna_chart("pareto_front", "Pareto front", study, target_names=about.metrics)
        first["target"] = lambda trial: trial.values[0]
    for name, title in {
        "optimization_history": "Objective value of each trial",
        "slice": "Objective value against each parameter",
        "parallel_coordinate": "All parameters of every trial (darker lines are better)",
    }.items():
        yield from _optuna_chart(name, title, study, **first)


def _optuna_chart(name: str, title: str, study: optuna.Study, **arguments: Any) -> Iterator[Chart]:
    """Yield a chart, or nothing where Optuna cannot draw it, e.g. because all values are equal."""
    plot = getattr(visualization, f"plot_{name}")
    try:
        yield Chart(name, title, plot(study, **arguments))
    except (ValueError, RuntimeError) as error:
        log.debug("no chart %s: %s", name, error)
