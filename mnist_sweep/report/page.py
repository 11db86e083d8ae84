"""Write the report: one self-contained HTML page, its tables as CSV, its matplotlib figures as PNG."""

import base64
import gzip
import io
import re
import shlex
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import optuna
import pandas as pd
import plotly.io
from optuna.trial import TrialState
from plotly.offline import get_plotlyjs

from mnist_sweep.analysis import figures, metrics
from mnist_sweep.analysis.figures import Figure
from mnist_sweep.analysis.predictions import draw_hardest_images
from mnist_sweep.report.charts import Chart, draw_charts
from mnist_sweep.report.run_details import RunDetails, load_run_details
from mnist_sweep.report.verdict import next_steps, verdict
from mnist_sweep.sweep import results
from mnist_sweep.sweep import study as storage
from mnist_sweep.sweep.results import About


def write(
    folder: Path, study: optuna.Study, *, uri: str | None, experiment: str = "mnist_sweep"
) -> Path:
    """Write the report of a sweep into `folder`, which is created if needed.

    Args:
        uri: MLflow's tracking URI; None if the sweep was not tracked.
        experiment: name of the MLflow experiment.

    Returns:
        The path of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about, configurations = About.of(study), results.ranked(study)
    details = load_run_details(configurations, uri, experiment, study.study_name)
    rows = results.leaderboard(study)
    charts = draw_charts(study, about, configurations, details.histories)
    pictures = draw_pictures(details)

    _write_leaderboard(folder / "leaderboard.csv", rows)
    study.trials_dataframe().to_csv(folder / "trials.csv", index=False)
    for picture in pictures:
        picture.figure.savefig(folder / f"{picture.name}.png")

    trials = storage.get_trials(study)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mnist_sweep.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html").render(
        name=study.study_name,
        created=time.strftime("%Y-%m-%d %H:%M"),
        verdict=verdict(configurations, about, details.correct()),
        steps=next_steps(configurations, about),
        rows=rows,
        charts=charts,
        pictures=[(picture.title, _data_uri(picture.figure)) for picture in pictures],
        states=Counter(t.user_attrs.get(storage.REPLACED, t.state.name.lower()) for t in trials),
        pruned=Counter(t.last_step for t in trials if t.state is TrialState.PRUNED),
        failures=Counter(
            t.user_attrs.get(storage.ERROR, "unknown").splitlines()[0]
            for t in trials
            if storage.own_failure(t)
        ).most_common(),
        best_command=about.command(configurations[0].trials[0].params) if configurations else None,
        facts=_facts(study, about, details),
        link=split_link(about.link),
        plotly=_compress(get_plotlyjs()),
        figures=_compress(_as_json(charts)),
    )
    path = folder / "report.html"
    path.write_text(page)
    return path


def _write_leaderboard(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    table = pd.DataFrame(rows, columns=list(rows[0]) if rows else ["rank"])
    numeric = table.columns.drop("configuration", errors="ignore")
    table[numeric] = table[numeric].replace(r",(?=\d{3})", "", regex=True)  # thousands separators
    table.to_csv(path, index=False)


class Picture(NamedTuple):
    """A matplotlib figure of the report."""

    name: str  # of its file, without suffix
    title: str
    figure: Figure


def draw_pictures(details: RunDetails) -> list[Picture]:
    """Draw the best models' confusion matrices, the overlap of their errors, and the hardest images."""
    predictions, data = details.predictions, details.data
    if predictions is None:
        return []
    n_classes = predictions.test.shape[2]
    classes = data.classes if data else tuple(map(str, range(n_classes)))
    pictures = []
    for (number, run), test in zip(details.runs.items(), predictions.test, strict=True):
        matrix = metrics.confusion_matrix(test.argmax(1), predictions.test_labels, n_classes)
        title = figures.confusion_title(matrix, f"trial {number}, {run.data.tags['model']}")
        figure = figures.confusion_matrix(matrix, classes, title)
        pictures.append(Picture(f"confusion_matrix_{number}", title, figure))
    if len(details.runs) > 1:
        title = "Test images that two models both get wrong"
        wrong = metrics.errors(predictions.test, predictions.test_labels)
        names = [f"trial {number}" for number in details.runs]
        figure = figures.error_overlap(metrics.overlap(wrong), names, title)
        pictures.append(Picture("error_overlap", title, figure))
    if data is not None:
        title = "Test images that all models get wrong"
        figure = draw_hardest_images(predictions, data)
        pictures.append(Picture("hardest_images", title, figure))
    return pictures


def split_link(link: str) -> tuple[str, str]:
    """Split `About.link` into the command that starts the UI and the URL; either may be empty.

    The link may come from anybody's database, and users paste the command. Therefore it is shown only
    if it is one of the two commands that start a UI, without a second command behind it.
    """
    url = re.search(r"https?://\S+", link)
    command = link[: url.start()].partition("\n")[0] if url else ""
    try:
        is_one_command = shlex.join(shlex.split(command)) == command
    except ValueError:  # an open quote
        is_one_command = False
    if not (is_one_command and command.startswith(("python -m mnist_sweep ui ", "mlflow ui "))):
        command = ""
    return command, url.group() if url else ""


def _facts(study: optuna.Study, about: About, details: RunDetails) -> dict[str, str]:
    """Return the data, device and software of the sweep, as far as they are recorded."""
    run = next(iter(details.runs.values()), None)
    tags = run.data.tags if run else {}
    facts = {
        "data": f"{tags['data']}, sha256 {tags['data.sha256'][:16]}…" if tags else None,
        "device": tags.get("device"),
        "code": study.user_attrs.get("code", {}).get("git.commit"),
        "torch": tags.get("version.torch"),
        "best run": run.info.run_id if run else None,
        "directory": about.directory,
    }
    return {name: value for name, value in facts.items() if value}


def _as_json(charts: Sequence[Chart]) -> str:
    layout: dict[str, Any] = {
        "margin": {"t": 20, "r": 20},
        "title": None,
        "template": "plotly_white",
        "legend": {"orientation": "h", "y": -0.25},
    }
    for chart in charts:
        chart.figure.update_layout(**layout)
    entries = (f'"{chart.name}":{plotly.io.to_json(chart.figure)}' for chart in charts)
    return f"{{{','.join(entries)}}}"


def _data_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=70)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _compress(text: str) -> str:
    """Gzip to base64, which the page decompresses: Plotly's library alone is 4.8 MB."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
