"""The page of MLflow's UI that compares the trials of sweeps."""

import base64
import json
import zlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from mnist_sweep.tracking import view
from mnist_sweep.tracking.run import MlflowRun, prepare, start_run, store_uri

SEARCHED = ["optimizer.lr", "model", "model.dropout"]
ONE = view.Comparison("q", {"val/accuracy": "maximize"}, SEARCHED, {"optimizer.lr", "model"})
TWO = view.Comparison("q", {"val/loss": "minimize", "fit_s": "minimize"}, ["seed"], {"seed"}, True)


def charts(comparison: view.Comparison, section: str = "") -> list[dict[str, Any]]:
    found = view.state(comparison)["compareRunCharts"]
    return [chart for chart in found if not section or chart["metricSectionId"] == section]


def test_page_is_ordered_and_filtered() -> None:
    state = view.state(ONE)
    assert state["searchFilter"] == "q"
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`best/val/accuracy`", False)
    assert view.state(TWO)["orderByAsc"]


def test_columns_are_the_figures_and_what_was_searched() -> None:
    figures = ["best/val/accuracy", "test/accuracy", "fit_s", "n_parameters"]
    expected = [f"metrics.`{name}`" for name in figures] + [f"params.`{name}`" for name in SEARCHED]
    assert view.state(ONE)["selectedColumns"] == expected
    twice = view.state(TWO)["selectedColumns"]
    assert len(twice) == len(set(twice))


def test_first_section_has_the_parameters_the_most_important_and_the_best() -> None:
    parallel, scatter, bar = charts(ONE, "What was searched")
    assert parallel["selectedParams"] == ["optimizer.lr", "model"]  # what every run has
    assert parallel["selectedMetrics"] == ["best/val/accuracy"]
    assert (scatter["xaxis"]["key"], scatter["xaxis"]["type"]) == ("optimizer.lr", "PARAM")
    assert (scatter["yaxis"]["key"], scatter["yaxis"]["type"]) == ("best/val/accuracy", "METRIC")
    assert (bar["type"], bar["metricKey"]) == ("BAR", "best/val/accuracy")
    assert view.state(ONE)["runsHiddenMode"] == "FIRST_10_RUNS"


def test_two_objectives_are_drawn_against_each_other() -> None:
    parallel, front, *_ = charts(TWO, "What was searched")
    assert parallel["selectedMetrics"] == ["fit_s", "best/val/loss"]  # the last is the colour
    assert (front["xaxis"]["key"], front["yaxis"]["key"]) == ("fit_s", "best/val/loss")
    assert view.state(TWO)["runsHiddenMode"] == "SHOW_ALL"


@pytest.mark.parametrize(("comparison", "first"), [(ONE, "val/accuracy"), (TWO, "val/loss")])
def test_learning_curves_begin_with_the_objective(comparison: view.Comparison, first: str) -> None:
    curves = [chart["metricKey"] for chart in charts(comparison, "Learning curves")]
    assert curves[0] == first
    assert sorted(curves) == sorted({"val/accuracy", "val/loss", "train/loss"})


def test_every_chart_is_in_a_section() -> None:
    state = view.state(ONE)
    sections = [section["uuid"] for section in state["compareRunSections"]]
    assert list(dict.fromkeys(chart["metricSectionId"] for chart in charts(ONE))) == sections
    assert len({chart["uuid"] for chart in charts(ONE)}) == len(charts(ONE))


@pytest.fixture
def experiment(store: Path) -> tuple[str, str]:
    """Return the URI and the experiment of an empty MLflow store."""
    uri = store_uri(None, str(store))
    return uri, prepare(uri, str(store), "mnist_sweep")


def sweep_run(
    experiment: tuple[str, str], sweep: str, tags: dict[str, str]
) -> AbstractContextManager[MlflowRun]:
    """Record the summary run of a sweep."""
    tags = {"kind": "sweep", "sweep": sweep, **tags}
    return start_run(*experiment, name=None, tags=tags, params={})


def record(
    experiment: tuple[str, str], sweep: str, searched: list[str], *trials: dict[str, str]
) -> Run:
    """Record a sweep whose trials have these parameters, and return its summary run."""
    for number, params in enumerate(trials):
        tags = {"sweep": sweep, "trial": str(number)}
        with start_run(*experiment, name=None, tags=tags, params=params) as run:
            run.log_metrics({"best/val/accuracy": number / 10}, step=1)
    tags = {view.OBJECTIVES: '{"val/accuracy": "maximize"}', view.PARAMETERS: json.dumps(searched)}
    with sweep_run(experiment, sweep, tags) as summary:
        pass
    return summary.client.get_run(summary.run_id)


def saved(experiment: tuple[str, str], *sweeps: str) -> dict[str, Any]:
    """Return the state of the page that was saved for these sweeps."""
    tags = MlflowClient(experiment[0]).get_experiment(experiment[1]).tags
    kind, _, text = tags[view.TAG + view.key(sweeps)].partition(";")
    assert kind == "deflate"
    state: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(text)))
    return state


def test_saved_page_has_the_searched_parameters_that_all_trials_have(
    experiment: tuple[str, str],
) -> None:
    trials = {"lr": "0.1", "m": "0.9", "fixed": "1"}, {"lr": "0.2", "fixed": "1"}
    sweep = record(experiment, "s", ["m", "lr"], *trials)
    view.save(MlflowClient(experiment[0]), experiment[1], [sweep])
    state = saved(experiment, "s")
    assert state["compareRunCharts"][0]["selectedParams"] == ["lr"]
    assert state["selectedColumns"][-2:] == ["params.`m`", "params.`lr`"]
    assert state["searchFilter"].startswith("tags.sweep = 's' AND tags.trial != ''")


def test_page_of_two_sweeps_has_their_trials_and_both_spaces(experiment: tuple[str, str]) -> None:
    params = {"lr": "0.1", "model": "a", "sweep.name": "x"}
    sweeps = [
        record(experiment, "one", ["lr"], params, params),
        record(experiment, "two", ["model", "lr"], params),
    ]
    record(experiment, "three", ["model"], params)
    client = MlflowClient(experiment[0])
    view.save(client, experiment[1], sweeps)
    state = saved(experiment, "one", "two")
    assert state["compareRunCharts"][0]["selectedParams"] == ["sweep.name", "lr", "model"]
    found = client.search_runs([experiment[1]], state["searchFilter"])
    assert sorted(run.data.tags["sweep"] for run in found) == ["one", "one", "two"]


def test_page_of_a_sweep_without_trials(experiment: tuple[str, str]) -> None:
    view.save(MlflowClient(experiment[0]), experiment[1], [record(experiment, "s", ["lr"])])
    assert saved(experiment, "s")["compareRunCharts"][0]["selectedParams"] == ["lr"]


def test_all_runs_are_visible_where_the_best_ten_would_mislead(experiment: tuple[str, str]) -> None:
    both = json.dumps({"val/accuracy": "maximize", "fit_s": "minimize"})
    sweeps = [record(experiment, name, []) for name in ("one", "two")]
    with sweep_run(experiment, "front", {view.OBJECTIVES: both}) as front:
        pass
    client = MlflowClient(experiment[0])
    summaries = ([sweeps[0]], sweeps, [client.get_run(front.run_id)])
    shown = [view.compare(client, experiment[1], runs).all_visible for runs in summaries]
    assert shown == [False, True, True]


def test_several_sweeps_without_trials_match_no_run(experiment: tuple[str, str]) -> None:
    sweeps = [record(experiment, name, []) for name in ("one", "two")]
    client = MlflowClient(experiment[0])
    view.save(client, experiment[1], sweeps)
    query = saved(experiment, "one", "two")["searchFilter"]
    assert client.search_runs([experiment[1]], query) == []


def test_sweep_of_version_0_1_is_ordered_by_its_best_value(experiment: tuple[str, str]) -> None:
    with sweep_run(experiment, "old", {}) as summary:
        summary.log_metrics({"best/val/loss": 0.1}, step=0)
    client = MlflowClient(experiment[0])
    view.save(client, experiment[1], [client.get_run(summary.run_id)])
    state = saved(experiment, "old")
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`best/val/loss`", True)


def test_largest_page_fits_into_a_tag(experiment: tuple[str, str]) -> None:
    ids = ", ".join(f"'{number:032x}'" for number in map(hash, map(str, range(view.MAX_RUNS))))
    names = [f"some.group.parameter_{i}" for i in range(50)]
    query = f"attributes.run_id IN ({ids})"
    large = view.Comparison(query, {"val/accuracy": "maximize"}, names, names)
    MlflowClient(experiment[0]).set_experiment_tag(
        experiment[1], "x", view.encode(view.state(large))
    )
