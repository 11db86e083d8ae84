"""The report's charts: Plotly's for the page, matplotlib's of the same as files."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import plotly.graph_objects as go
from optuna.trial import TrialState

from mnist_sweep.analysis import figures
from mnist_sweep.sweep import results
from mnist_sweep.sweep.results import About, Configuration
from mnist_sweep.sweep.study import trials
from mnist_sweep.tracking.queries import History

log = logging.getLogger(__name__)

COSTS = {"n_parameters": "parameters", "fit_s": "seconds of training and validation"}

Drawn = tuple[str, str, Any]  # name, what one should see, figure of Plotly or of matplotlib


def optunas_own(study: optuna.Study, about: About, backend: Any) -> Iterator[Drawn]:
    """Optuna's figures, by `optuna.visualization` or its `matplotlib`: those that can be drawn."""
    if len(trials(study, TrialState.COMPLETE)) < 2:
        return
    target: dict[str, Any] = {"target_name": about.metrics[0]}
    if len(about.metrics) > 1:
        names = {"target_names": about.metrics}
        yield from _drawn("pareto_front", "No other trial is better in both", backend, study, names)
        target["target"] = lambda trial: trial.values[0]
    for name, title in {
        "optimization_history": "How the best came to be, trial by trial",
        "param_importances": "Which parameters matter",
        "slice": "Each parameter alone",
        "parallel_coordinate": "All parameters of every trial: follow the dark lines",
    }.items():
        yield from _drawn(name, title, backend, study, target)


def _drawn(
    name: str, title: str, backend: Any, study: optuna.Study, arguments: dict[str, Any]
) -> Iterator[Drawn]:
    plot: Callable[..., Any] = getattr(backend, f"plot_{name}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna's matplotlib plots are marked experimental
            yield name, title, plot(study, **arguments)
    except (ValueError, RuntimeError) as error:  # e.g. one parameter, or all values equal
        log.debug("%s: %s", name, error)


def trade_off(
    found: Sequence[Configuration], about: About, cost: str, *, maximize: bool
) -> go.Figure | None:
    """The first objective of every configuration against a cost, the front of both marked."""
    points = cost_points(found, cost)
    if len(points) < 2:
        return None
    front = pareto_front(points, maximize=maximize)
    figure = go.Figure()
    for shown, name, colour, mode in (
        (points, "configurations", figures.BLUE, "markers"),
        (front, "nothing cheaper is better", figures.ORANGE, "lines+markers"),
    ):
        figure.add_scatter(
            x=[p[0] for p in shown],
            y=[p[1] for p in shown],
            text=[p[2].name for p in shown],
            hovertemplate="%{text}<br>%{x:,.4g}, %{y:.4f}<extra></extra>",
            mode=mode,
            name=name,
            marker={"color": colour},
        )
    figure.update_layout(xaxis_title=COSTS[cost], yaxis_title=about.metrics[0])
    figure.update_xaxes(type="log")
    return figure


def cost_points(
    found: Sequence[Configuration], cost: str
) -> list[tuple[float, float, Configuration]]:
    """(cost, score, configuration), means over the seeds, the cheapest first."""
    pairs = ((configuration, configuration.summaries(cost)) for configuration in found)
    points = [(sum(costs) / len(costs), each.score, each) for each, costs in pairs if costs]
    return sorted(points, key=lambda point: point[0])


def pareto_front(
    points: Sequence[tuple[float, float, Configuration]], *, maximize: bool
) -> list[tuple[float, float, Configuration]]:
    """Of points by rising cost those that are better than all cheaper ones."""
    sign = 1 if maximize else -1
    front: list[tuple[float, float, Configuration]] = []
    for point in points:
        if not front or sign * point[1] > sign * front[-1][1]:
            front.append(point)
    return front


def learning_curves(histories: Mapping[str, History]) -> go.Figure | None:
    """Training (dotted) and validation loss by epoch of the runs by name."""
    if not histories:
        return None
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


def as_files(
    folder: Path,
    study: optuna.Study,
    about: About,
    found: Sequence[Configuration],
    histories: Mapping[str, History],
) -> None:
    """The same as PNG."""
    metric = about.metrics[0]
    from optuna.visualization import matplotlib as backend

    for name, _, drawn in optunas_own(study, about, backend):
        first = drawn.flat[0] if hasattr(drawn, "flat") else drawn
        first.figure.savefig(folder / f"{name}.png", dpi=100, bbox_inches="tight")
    if histories:
        curves = {results.shorten(name): history for name, history in histories.items()}
        figures.learning_curves_of(curves).savefig(folder / "top_learning_curves.png")
    for cost, what in COSTS.items():
        if len(points := cost_points(found, cost)) > 1:
            front = pareto_front(points, maximize=results.maximizes(study))
            every, best = (np.array([point[:2] for point in some]) for some in (points, front))
            figures.trade_off(every, best, what, metric).savefig(folder / f"against_{cost}.png")
