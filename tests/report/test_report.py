"""The report of real sweeps, written at their end and again by the tool, and of hostile studies."""

import csv
import shlex
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient
from optuna.distributions import CategoricalDistribution, FloatDistribution

from mnist_sweep.common.errors import UserError
from mnist_sweep.common.program import program
from mnist_sweep.report import page
from mnist_sweep.report.study import load_study
from mnist_sweep.sweep.results import ABOUT
from tests.helpers import engine
from tests.helpers.browser import open_page
from tests.helpers.cli import recorded, tool

SMALL = ("data=mnist5k", "data.train_size=400", "data.val_size=200", "trainer.max_epochs=2")


@pytest.mark.slow
def test_report_is_written_at_the_end_of_a_sweep_and_again_by_the_tool(store: Path) -> None:
    arguments = ("model=mlp", "optimizer.lr=1e-3,1e-2", "data.batch_size=40,50,500")
    code, out = engine.run(*SMALL, *arguments, "sweep.name=r", store=store, module="mnist_sweep")
    assert code == 1  # a batch of 500 is larger than the training set
    folder = store / "outputs" / "r" / "report"
    page = folder / "report.html"
    assert f"report: {page.as_uri()}" in out
    text = page.read_text()
    for expected in (
        "has the best val/accuracy",
        "McNemar",
        "4 complete, 2 fail",
        "batch_size=500 is larger",
        "seed=0,1,2",
    ):
        assert expected in text
    assert "train it again" in out
    assert page.stat().st_size < 5e6
    with (folder / "leaderboard.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
    scores = [float(row["val/accuracy %"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    pictures = {path.stem for path in folder.glob("*.png")}
    assert {"error_overlap", "hardest_images"} <= pictures
    for chart in ("optimization_history", "slice", "parallel_coordinate", "learning_curves"):
        assert f'id="{chart}"' in text
    summary = next(r for r in recorded(store) if r.data.tags.get("kind") == "sweep")
    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    recorded_files = {file.path for file in client.list_artifacts(summary.info.run_id)}
    assert {"report.html", "trials.csv", "leaderboard.csv", "error_overlap.png"} <= recorded_files

    page.unlink()
    done = tool("report", store=store)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"report of sweep r: {page}\n"
    assert page.exists()
    wrong = tool("report", "sweep=q", store=store)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: sweep=q: no such sweep; the last is r\n"


@pytest.mark.slow
def test_report_of_two_objectives_without_tracking(store: Path) -> None:
    arguments = ("search=pareto", "model=mlp", "sweep.n_trials=4", "tracking=none", "sweep.name=p")
    code, out = engine.run(*SMALL, *arguments, store=store, module="mnist_sweep")
    assert code == 0, out
    folder = store / "outputs" / "p" / "report"
    text = (folder / "report.html").read_text()
    assert 'id="pareto_front"' in text
    assert "has the best val/accuracy" in text


def test_report_without_a_sweep_names_the_command_that_runs_one(fresh: Path) -> None:
    done = tool("report", store=fresh)
    assert done.returncode == 2
    assert done.stderr.endswith("no sweep ran yet; python -m mnist_sweep -m runs one\n")
    assert not fresh.exists()


CODE = (
    "<img src=x onerror=document.title='ran'><script>document.title='ran'</script>\"'`$(touch ran);"
)


def hostile_study(url: str, elsewhere: Path, name: str = "s") -> optuna.Study:
    """Create a study, as somebody who can write to a shared database may change it."""
    study = optuna.create_study(storage=url, study_name=name, direction="maximize")
    distributions = {CODE: CategoricalDistribution([CODE, 1]), "x": FloatDistribution(0, 1)}
    for i in range(25):
        trial = optuna.create_trial(
            params={CODE: CODE if i % 2 else 1, "x": i / 25},
            distributions=distributions,
            value=i / 25,
            user_attrs={"directory": str(elsewhere), "summary": {"fit_s": i + 1.0}},
        )
        study.add_trial(trial)
    failed = optuna.create_trial(
        state=optuna.trial.TrialState.FAIL,
        params={CODE: 1, "x": 0.5},
        distributions=distributions,
        user_attrs={"error": CODE},
    )
    study.add_trial(failed)
    study.set_user_attr(
        ABOUT,
        {
            "metrics": [CODE],
            "fixed": [f"data={CODE}"],
            "directory": str(elsewhere),
            "link": f"{CODE}\nhttp://127.0.0.1:5000/{CODE}",
            "columns": {"fit_s": CODE},
            "program": ["sh", "-c", CODE],
        },
    )
    return study


class Tags(HTMLParser):
    """Collects the attributes of every tag by the tag's name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[dict[str, str | None]]] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.setdefault(tag, []).append(dict(attrs))


def test_report_of_a_hostile_study_contains_no_code_of_it(tmp_path: Path) -> None:
    study = hostile_study("sqlite://", tmp_path / "elsewhere")
    text = page.write(tmp_path / "report", study, uri=None).read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.found.keys().isdisjoint({"iframe", "object", "img"})
    assert len(tags.found["script"]) == 1
    attributes = [each for found in tags.found.values() for each in found]
    assert not [name for each in attributes for name in each if name.startswith("on")]
    assert [each["href"][:7] for each in tags.found["a"]] == ["http://"]
    assert escape(shlex.join(program())) in text
    assert "sh -c" not in text, "the program is that of this process"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.browser
def test_charts_of_a_hostile_study_run_no_code_of_it(tmp_path: Path) -> None:
    study = hostile_study("sqlite://", tmp_path / "elsewhere")
    path = page.write(tmp_path / "report", study, uri=None)
    with open_page() as (tab, watcher):
        tab.goto(path.as_uri())
        tab.wait_for_selector("body[data-drawn]")
        for chart in tab.locator(".chart").all():
            chart.hover(force=True)
        assert tab.title() == "Sweep s"
        assert not watcher.errors
        assert all(url.startswith(("file:", "data:", "blob:")) for url in watcher.requests)


def test_report_writes_only_below_its_store(fresh: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    hostile_study(url, tmp_path / "elsewhere")
    done = tool("report", "tracking=none", f"storage={url}", store=fresh)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"report of sweep s: {fresh}/outputs/s/report/report.html\n"
    assert {path.name for path in tmp_path.iterdir()} == {"shared.db", "fresh"}


@pytest.mark.parametrize("name", ["../../x", "..", "/etc", "a/b", "", "a\nb"])
def test_name_that_leaves_the_store_is_refused(name: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    hostile_study(url, tmp_path, name)
    with pytest.raises(UserError, match="expected letters, digits"):
        load_study(url, "latest")


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("", ("", "")),
        ("http://h:1/#/a", ("", "http://h:1/#/a")),
        (
            "python -m mnist_sweep ui 'store=it is'\n  and: http://h",
            ("python -m mnist_sweep ui 'store=it is'", "http://h"),
        ),
        ("mlflow ui --port 1\n  and: http://h", ("mlflow ui --port 1", "http://h")),
        ("mlflow ui --port 1; rm x\n  and: http://h", ("", "http://h")),
        ("mlflow ui $(rm x)\n  and: http://h", ("", "http://h")),
        ("mlflow ui 'x\n  and: http://h", ("", "http://h")),
        ("rm x\n  and: http://h", ("", "http://h")),
        ("javascript:alert(1)", ("", "")),
    ],
)
def test_link_has_no_other_command(link: str, expected: tuple[str, str]) -> None:
    assert page.split_link(link) == expected
