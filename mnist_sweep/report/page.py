"""One self-contained HTML page, with its tables as CSV and its pictures as PNG beside it."""

import base64
import gzip
import io
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import optuna
import pandas as pd
import plotly.io
from numpy.typing import NDArray
from optuna import visualization
from optuna.trial import TrialState
from plotly.offline import get_plotlyjs

from mnist_sweep.analysis import figures, metrics
from mnist_sweep.analysis.figures import Figure
from mnist_sweep.analysis.predictions import Members, of_runs, picture_of_hardest, test_data
from mnist_sweep.common.errors import UserError
from mnist_sweep.data.dataset import Dataset
from mnist_sweep.report import charts
from mnist_sweep.report.verdict import next_steps, verdict
from mnist_sweep.sweep import results
from mnist_sweep.sweep import study as storage
from mnist_sweep.sweep.results import About, Configuration
from mnist_sweep.sweep.study import trials
from mnist_sweep.tracking import queries as recorded
from mnist_sweep.tracking.queries import History, Run

log = logging.getLogger(__name__)

TOP = 5  # whose runs are looked into
CURVES = ("train/loss", "val/loss")


@dataclass(frozen=True)
class Looked:
    """What MLflow knows of the best runs; empty where nothing was recorded."""

    runs: dict[int, Run] = field(default_factory=dict)  # by trial, the best first
    histories: dict[str, History] = field(default_factory=dict)  # by name
    members: Members | None = None
    data: Dataset | None = None

    @property
    def right(self) -> dict[int, NDArray[Any]]:
        """Of each trial, which validation images [N_val] it got right; none if those differ."""
        if self.members is None or self.members.val is None:
            return {}
        right = ~metrics.errors(self.members.val, self.members.val_labels)
        return dict(zip(self.runs, right, strict=True))


def look(found: Sequence[Configuration], uri: str | None, experiment: str, sweep: str) -> Looked:
    """Into the runs of the best configurations' first trials."""
    best = {configuration.trials[0].number: configuration for configuration in found[:TOP]}
    runs = recorded.best_runs_of(uri, experiment, sweep, list(best)) if uri else {}
    if uri is None or not runs:
        return Looked()
    histories = {
        f"{number}: {best[number].name}": recorded.history(uri, run.info.run_id, CURVES)
        for number, run in runs.items()
    }
    try:
        members = of_runs(uri, list(runs.values()))
        return Looked(runs, histories, members, test_data(uri, members))
    except UserError as error:
        log.warning("report: no confusion matrices: %s", error)
        return Looked(runs, histories)


def write(
    folder: Path, study: optuna.Study, *, uri: str | None, experiment: str = "mnist_sweep"
) -> Path:
    """The report of `study` into `folder`; returns the page. `uri` None: nothing of MLflow."""
    folder.mkdir(parents=True, exist_ok=True)
    about, found = About.of(study), results.ranked(study)
    looked = look(found, uri, experiment, study.study_name)
    rows = leaderboard(found, about)
    pd.DataFrame(rows, columns=None if rows else ["rank"]).to_csv(
        folder / "leaderboard.csv", index=False
    )
    study.trials_dataframe().to_csv(folder / "trials.csv", index=False)
    charts.as_files(folder, study, about, found, looked.histories)
    pictures = dict(_pictures(looked))
    for name, (_, figure) in pictures.items():
        figure.savefig(folder / f"{name}.png")
    drawn = {name: (title, figure) for name, title, figure in _charts(study, about, found, looked)}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mnist_sweep.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    every = trials(study)
    page = environment.get_template("page.html").render(
        name=study.study_name,
        made=time.strftime("%Y-%m-%d %H:%M"),
        about=about,
        verdict=verdict(found, about, looked.right),
        steps=next_steps(study, found, about),
        best_command=about.command(found[0].trials[0].params) if found else None,
        facts=_facts(study, looked),
        rows=rows,
        counts=Counter(t.user_attrs.get(storage.REPLACED, t.state.name.lower()) for t in every),
        pruned=Counter(t.last_step for t in every if t.state is TrialState.PRUNED),
        failures=Counter(
            t.user_attrs.get(storage.ERROR, "unknown").splitlines()[0]
            for t in every
            if storage.own_failure(t)
        ).most_common(),
        charts={name: title for name, (title, _) in drawn.items()},
        pictures={name: (title, _as_uri(figure)) for name, (title, figure) in pictures.items()},
        plotly=_packed(get_plotlyjs()),
        figures=_packed(_as_json({name: figure for name, (_, figure) in drawn.items()})),
    )
    path = folder / "report.html"
    path.write_text(page)
    return path


def leaderboard(found: Sequence[Configuration], about: About) -> list[dict[str, Any]]:
    """One row a configuration, the best first; numbers as numbers, for sorting and for the CSV."""

    def mean(values: Sequence[float], digits: int) -> float | None:
        return round(sum(values) / len(values), digits) if values else None

    return [
        {
            "rank": rank,
            "trial": each.trials[0].number,
            "configuration": each.name,
            about.metrics[0]: results.format_metric(about.metrics[0], each.scores),
            "seeds": len(each.trials),
            "test accuracy %": results.format_metric("accuracy", each.summaries("test/accuracy")),
            "weights": mean(each.summaries("n_parameters"), 0),
            "seconds": mean(each.summaries("fit_s"), 2),
            "best epoch": mean(each.summaries("best_epoch"), 1),
        }
        for rank, each in enumerate(found, start=1)
    ]


def _charts(
    study: optuna.Study, about: About, found: Sequence[Configuration], looked: Looked
) -> list[charts.Drawn]:
    own = [
        ("learning_curves", "Best runs: validation, and dotted training", None),
        ("against_parameters", "Does size pay?", "n_parameters"),
        ("against_seconds", "Does time pay?", "fit_s"),
    ]
    drawn = [
        (
            name,
            title,
            charts.trade_off(found, about, cost, maximize=results.maximizes(study))
            if cost
            else charts.learning_curves(looked.histories),
        )
        for name, title, cost in own
    ]
    drawn += charts.optunas_own(study, about, visualization)
    return [(name, title, figure) for name, title, figure in drawn if figure is not None]


def _pictures(looked: Looked) -> list[tuple[str, tuple[str, Figure]]]:
    """Confusion matrices of the best, whose errors overlap where, what all get wrong."""
    members = looked.members
    if members is None:
        return []
    n = members.test.shape[2]
    classes = looked.data.classes if looked.data else tuple(map(str, range(n)))
    found = []
    for number, name, test in zip(looked.runs, members.names, members.test, strict=True):
        matrix = metrics.confusion_matrix(test.argmax(1), members.test_labels, n)
        n_wrong = int(matrix.sum() - matrix.trace())
        title = (
            f"trial {number}, {name}: {n_wrong} of {len(members.test_labels):,} test images wrong"
        )
        figure = figures.confusion_matrix(matrix, classes, title)
        found.append((f"confusion_matrix_{number}", (title, figure)))
    if len(members.names) > 1:
        wrong = metrics.errors(members.test, members.test_labels)
        names = [f"trial {number}" for number in looked.runs]
        title = "Test images that two models both get wrong"
        found.append(
            ("error_overlap", (title, figures.error_overlap(metrics.overlap(wrong), names, title)))
        )
    if looked.data is not None:
        title = "What all of them get wrong"
        found.append(("hardest_images", (title, picture_of_hardest(members, looked.data))))
    return found


def _facts(study: optuna.Study, looked: Looked) -> dict[str, str]:
    """What the sweep was made of."""
    code = study.user_attrs.get("code", {})
    run = next(iter(looked.runs.values()), None)
    tags = run.data.tags if run else {}
    known = {
        "data": f"{tags['data']}, sha256 {tags['data.sha256'][:16]}…" if tags else None,
        "device": tags.get("device"),
        "code": code.get("git.commit"),
        "torch": tags.get("version.torch"),
        "run of the best": run.info.run_id if run else None,
    }
    return {name: value for name, value in known.items() if value}


def _as_json(drawn: Mapping[str, Any]) -> str:
    layout = {
        "margin": {"t": 20, "r": 20},
        "title": None,
        "template": "plotly_white",
        "legend": {"orientation": "h", "y": -0.25},
    }
    for figure in drawn.values():
        figure.update_layout(**layout)
    return "{" + ",".join(f'"{k}":{plotly.io.to_json(v)}' for k, v in drawn.items()) + "}"


def _as_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=70)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _packed(text: str) -> str:
    """Plotly alone is 4.8 MB; browsers unpack gzip themselves."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
