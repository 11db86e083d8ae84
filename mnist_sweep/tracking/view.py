"""The page of MLflow's UI that compares the trials of sweeps: its charts, columns, filter and order.

MLflow stores such a page as a tag of the experiment ("share view"), and a link opens it. The format
is MLflow's own. A version that does not know it shows the plain page of the experiment.
"""

import base64
import hashlib
import json
import logging
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, islice
from typing import Any

from mlflow import MlflowClient

from mnist_sweep.tracking.queries import IS_TRIAL, Run, find_runs, tag_is
from mnist_sweep.tracking.retry import retried
from mnist_sweep.tracking.tracker import CONFUSION_MATRIX

log = logging.getLogger(__name__)

TAG = "mlflow.sharedViewState."  # and a key, which the link names
OBJECTIVES, PARAMETERS = "objectives", "parameters"  # tags of a sweep's own run, as JSON
MAX_RUNS = 300  # on a page; the filter over several sweeps lists them, and MLflow limits its length
MAX_EACH = 30  # of each of several sweeps

VALIDATION, TEST = "best/val/accuracy", "test/accuracy"
SECONDS, SIZE = "fit_s", "n_parameters"
CURVES = ("val/accuracy", "val/loss", "train/loss")
SEARCHED, LEARNING = "What was searched", "Learning curves"
COST, CONFUSION = "Cost and accuracy", "Confusion matrices"
COLUMNS = {SEARCHED: 1, LEARNING: 3, COST: 2, CONFUSION: 1}  # charts side by side in each section


@dataclass(frozen=True)
class Comparison:
    """What a page compares.

    Attributes:
        query: which runs, in MLflow's syntax.
        objectives: {metric: "maximize" or "minimize"}; the first one orders the runs.
        parameters: what was searched, the most important first.
        common: those of `parameters` that every run has; MLflow leaves out of parallel coordinates a
            run that lacks one.
        all_visible: whether every chart shows all runs, or only the parallel coordinates do and the
            others show the best ten. More bars, curves and pictures can hardly be read.
    """

    query: str
    objectives: Mapping[str, str]
    parameters: Sequence[str]
    common: Collection[str]
    all_visible: bool = False

    @property
    def metrics(self) -> list[str]:
        """The metrics of a run that hold the objectives."""
        return [final_metric(name) for name in self.objectives]


def final_metric(objective: str) -> str:
    """Return the metric of a run that holds an objective's final value.

    Of a metric of each epoch that is the value of the best epoch.
    """
    return f"best/{objective}" if is_curve(objective) else objective


def is_curve(metric: str) -> bool:
    """Whether a metric has a value for each epoch."""
    return metric.startswith(("train/", "val/"))


def key(sweeps: Iterable[str]) -> str:
    """Return the key of the page that compares these sweeps."""
    return hashlib.sha256(",".join(sweeps).encode()).hexdigest()[:16]


def encode(state: Mapping[str, Any]) -> str:
    """Write the state of a page as MLflow's UI does, in a tenth of the length of its JSON."""
    compressed = zlib.compress(json.dumps(state).encode(), level=9)
    return f"deflate;{base64.b64encode(compressed).decode()}"


def save(client: MlflowClient, experiment_id: str, sweeps: Sequence[Run]) -> None:
    """Save the page that compares sweeps, given by their own runs."""
    name = TAG + key(sweep.data.tags["sweep"] for sweep in sweeps)
    comparison = compare(client, experiment_id, sweeps)
    client.set_experiment_tag(experiment_id, name, encode(state(comparison)))


def update(uri: str, run_id: str) -> str:
    """Save the page that compares the trials of a sweep, given by its own run.

    A store that fails costs only the page.

    Returns:
        The id of the experiment.
    """
    client = MlflowClient(uri)
    summary = retried(partial(client.get_run, run_id))
    experiment_id: str = summary.info.experiment_id
    try:
        retried(partial(save, client, experiment_id, [summary]))
    except Exception as error:  # without it the link opens MLflow's plain page
        log.warning("the comparison in MLflow's UI was not composed: %s", error)
    return experiment_id


def compare(client: MlflowClient, experiment_id: str, sweeps: Sequence[Run]) -> Comparison:
    """Return what a page shows of these sweeps, from what their runs recorded."""
    objectives: dict[str, str] = {}
    several = len(sweeps) > 1
    parameters = ["sweep.name"] if several else []
    for sweep in sweeps:
        objectives |= _objectives(sweep)
        parameters += json.loads(sweep.data.tags.get(PARAMETERS, "[]"))
    metric, direction = next(iter(objectives.items()))
    order = f"metrics.`{final_metric(metric)}` {'ASC' if direction == 'minimize' else 'DESC'}"
    queries = [trials_of(sweep.data.tags["sweep"]) for sweep in sweeps]
    n = min(MAX_EACH, MAX_RUNS // len(sweeps)) if several else MAX_RUNS
    runs = list(
        chain.from_iterable(
            islice(find_runs(client, [experiment_id], query, order=order, page_size=n), n)
            for query in queries
        )
    )
    ids = ", ".join(f"'{run.info.run_id}'" for run in runs) or "''"  # MLflow refuses an empty list
    recorded = [run.data.params.keys() for run in runs]
    return Comparison(
        # MLflow knows neither OR nor IN for tags
        query=f"attributes.run_id IN ({ids})" if several else queries[0],
        objectives=objectives,
        parameters=list(dict.fromkeys(parameters)),
        common={name for name in parameters if all(name in params for params in recorded)},
        # a Pareto front is not the first ten, and the best ten can all be of one sweep
        all_visible=several or len(objectives) > 1,
    )


def trials_of(sweep: str) -> str:
    """Return the query for the trials of a sweep.

    An interrupted trial has another run, which replaces the killed one.
    """
    return f"{tag_is('sweep', sweep)} AND {IS_TRIAL} AND attributes.status != 'KILLED'"


def _objectives(sweep: Run) -> dict[str, str]:
    """Return the objectives of a sweep. Version 0.1 did not record them, only the best value."""
    if OBJECTIVES in sweep.data.tags:
        objectives: dict[str, str] = json.loads(sweep.data.tags[OBJECTIVES])
        return objectives
    names = [name.removeprefix("best/") for name in sweep.data.metrics if name.startswith("best/")]
    name = next(iter(names), "val/accuracy")
    return {name: "minimize" if name.endswith("loss") else "maximize"}


def state(comparison: Comparison) -> dict[str, Any]:
    """Return the state of the page, as MLflow's UI stores it."""
    contents = {
        SEARCHED: _searched(comparison),
        LEARNING: _learning_curves(comparison),
        COST: [_scatter(_metric(name), VALIDATION) for name in (SECONDS, SIZE)],
        CONFUSION: [
            {"type": "IMAGE", "imageKeys": [CONFUSION_MATRIX], "step": 0, "showRunParams": False}
        ],
    }
    numbers = count()
    charts = [
        {
            **chart,
            "uuid": f"chart {next(numbers)}",
            "metricSectionId": section,
            "deleted": False,
            "isGenerated": False,
        }
        for section, members in contents.items()
        for chart in members
    ]
    sections = [
        {
            "uuid": section,
            "name": section,
            "display": True,
            "isReordered": True,
            "columns": columns,
            "cardHeight": 700 if section == CONFUSION else 360,  # two rows of pictures
        }
        for section, columns in COLUMNS.items()
    ]
    metrics = [*comparison.metrics, TEST, SECONDS, SIZE]
    columns = [f"metrics.`{name}`" for name in dict.fromkeys(metrics)]
    return {
        "searchFilter": comparison.query,
        "orderByKey": columns[0],
        "orderByAsc": next(iter(comparison.objectives.values())) == "minimize",
        "selectedColumns": [*columns, *(f"params.`{name}`" for name in comparison.parameters)],
        "runsHiddenMode": "SHOW_ALL" if comparison.all_visible else "FIRST_10_RUNS",
        "hideEmptyCharts": True,
        "isAccordionReordered": True,  # keeps the order of the sections
        "compareRunSections": sections,
        "compareRunCharts": charts,
    }


def _searched(comparison: Comparison) -> list[dict[str, Any]]:
    metrics = comparison.metrics
    common = [name for name in comparison.parameters if name in comparison.common]
    # the first objective last, because the last axis colours the lines
    axes = {"selectedParams": common, "selectedMetrics": metrics[::-1]}
    return [
        {"type": "PARALLEL", **axes, "showAllRuns": True},
        *(_scatter(_metric(other), metrics[0]) for other in metrics[1:]),
        *(_scatter(_param(name), metrics[0]) for name in common[:1]),
        {"type": "BAR", "metricKey": metrics[0], "displayName": metrics[0]},
    ]


def _learning_curves(comparison: Comparison) -> list[dict[str, Any]]:
    objectives = [name for name in comparison.objectives if is_curve(name)]
    return [_line(name) for name in dict.fromkeys((*objectives, *CURVES))]


def _metric(name: str) -> dict[str, str]:
    return {"key": name, "dataAccessKey": name, "type": "METRIC"}


def _param(name: str) -> dict[str, str]:
    return {"key": name, "dataAccessKey": name, "type": "PARAM"}


def _scatter(x: Mapping[str, str], y: str) -> dict[str, Any]:
    return {"type": "SCATTER", "xaxis": x, "yaxis": _metric(y), "runsCountToCompare": 100}


def _line(metric: str) -> dict[str, Any]:
    return {
        "type": "LINE",
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "displayName": metric,
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "range": {},
        "lineSmoothness": 0,
        "displayPoints": True,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }
