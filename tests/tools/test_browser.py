"""The report, MLflow's pages and the demo after a sweep, in a real browser."""

import html
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

import pytest
from playwright.sync_api import Page, expect

from tests.helpers.browser import draw, open_page, overflow_px, screenshot
from tests.helpers.cli import recorded, run
from tests.helpers.servers import demo, ui

pytestmark = pytest.mark.browser

SWEEP = ("data=mnist5k", "model=mlp,simple", "seed=0,1", "data.split_seed=0", "sweep.name=seen")
SWEEP += ("trainer.max_epochs=3", "tracking.figures=all")
SEARCH = ("search=tpe", "sweep.n_trials=8", "sweep.name=night", "pruner=none", "data=mnist5k")
SEARCH += ("model=choice(mlp,simple)", "data.train_size=1000", "trainer.max_epochs=3")
SEARCH += ("tracking.log_model=false",)
NAMES = [
    f"seen/{i} {model} seed={seed}"
    for i, (model, seed) in enumerate(itertools.product(("mlp", "simple"), (0, 1)))
]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a search, and after it a grid of four trials."""
    store = tmp_path_factory.mktemp("swept")
    for arguments in (SEARCH, SWEEP):
        done = run("-m", f"store={store}", *arguments)
        assert done.returncode == 0, done.stderr
    return store


@pytest.fixture(scope="module")
def links(swept: Path) -> Iterator[dict[str, str]]:
    """Run the tool `ui`, and return the links that it prints by their titles."""
    with ui(swept, "port=0") as (lines, address):
        yield {**dict(line.split(": ", 1) for line in lines), "address": address}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_draws_charts_and_sorts_without_a_server(swept: Path, scheme: str) -> None:
    with open_page(scheme=scheme) as (page, watcher):
        page.goto((swept / "outputs" / "seen" / "report" / "report.html").as_uri())
        page.wait_for_selector("body[data-drawn]")
        expect(page.locator("#verdict p").first).to_contain_text(
            "model=simple has the best val/accuracy"
        )
        expect(page.locator("#verdict")).to_contain_text("Welch's t-test over 2 and 2 seeds")
        charts = page.locator(".chart")
        assert charts.count() >= 6
        for i in range(charts.count()):
            assert charts.nth(i).locator("svg.main-svg").count() > 0
        rows = page.locator("#leaderboard tbody tr")
        assert rows.count() == 2
        page.get_by_role("button", name="parameters").click()
        expect(rows.first).to_contain_text("model=mlp")
        page.get_by_role("button", name="parameters").click()
        expect(rows.first).to_contain_text("model=simple")
        page.get_by_label("Filter").fill("mlp")
        expect(rows).to_have_count(1)
        page.get_by_label("Filter").fill("")
        for image in page.locator("figure img").all():
            assert image.evaluate("image => image.naturalWidth") > 100
        if scheme == "light":
            screenshot(page, "report")
        assert watcher.errors == []
        assert {url.split(":")[0] for url in watcher.requests} <= {"file", "data", "blob"}


def test_report_fits_a_phone(swept: Path) -> None:
    with open_page(width=390, height=800) as (page, _):
        page.goto((swept / "outputs" / "seen" / "report" / "report.html").as_uri())
        page.wait_for_selector("body[data-drawn]")
        assert overflow_px(page) <= 0


@contextmanager
def comparison(url: str, height: int = 1000) -> Iterator[Page]:
    """Open the page that compares sweeps, without what MLflow shows beside it."""
    with open_page(width=1500, height=height) as (page, _):
        page.goto(url)
        page.get_by_role("button", name="Hide banner").click()
        page.get_by_role("button", name="Close").click()  # MLflow's assistant
        expect(page.locator("svg .axis .label").first).to_be_visible()
        yield page


def axes(page: Page) -> list[str]:
    """Return the titles of the axes of the parallel coordinates."""
    return page.locator("svg .axis .label").all_text_contents()


def listed(page: Page) -> list[str]:
    """Return the names of the runs in the order of the page."""
    return page.locator("a[href*='/runs/']").all_text_contents()


def ranked(store: Path, sweep: str) -> list[str]:
    """Return the names of the runs of a sweep, the most accurate on the validation images first."""
    runs = [r for r in recorded(store) if r.data.tags["sweep"] == sweep and "trial" in r.data.tags]
    runs.sort(key=lambda run: -run.data.metrics["best/val/accuracy"])
    return [run.info.run_name for run in runs]


def test_link_of_a_sweep_opens_its_composed_comparison(swept: Path, links: dict[str, str]) -> None:
    report = (swept / "outputs" / "night" / "report" / "report.html").read_text()
    printed = html.unescape(re.search(r'id="runs" href="([^"]+)', report).group(1))
    with comparison(f"{links['address']}/#{urlparse(printed).fragment}") as page:
        searched = ["optimizer.lr", "data.batch_size", "model"]
        assert axes(page) == [*searched, "best/val/accuracy"]
        assert listed(page) == ranked(swept, "night")
        sections = page.get_by_test_id("experiment-view-compare-runs-section-header")
        expected = ["What was searched", "Learning curves", "Cost and accuracy"]
        for section, title in zip(sections.all()[:3], expected, strict=True):
            expect(section).to_contain_text(title)
        screenshot(page, "mlflow-sweep")


def test_ui_opens_the_comparison_of_the_last_sweep(links: dict[str, str]) -> None:
    with comparison(links["sweep seen"]) as page:
        assert axes(page) == ["model", "seed", "best/val/accuracy"]
        assert sorted(listed(page)) == NAMES
        page.get_by_text("Confusion matrices").evaluate("title => title.scrollIntoView()")
        pictures = page.locator("img[src*='confusion_matrix'], img[src^='blob:']")
        expect(pictures).to_have_count(len(NAMES))
        for picture in pictures.all():
            assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 100
        screenshot(page, "mlflow-matrices")


def test_two_sweeps_are_compared_on_one_page(swept: Path) -> None:
    with ui(swept, "port=0", "sweep=seen,night") as (lines, _):
        url = dict(line.split(": ", 1) for line in lines)["sweeps seen, night"]
        with comparison(url) as page:
            assert axes(page) == [
                *("sweep.name", "model", "seed", "optimizer.lr", "data.batch_size"),
                "best/val/accuracy",
            ]
            assert sorted(listed(page)) == sorted(ranked(swept, "seen") + ranked(swept, "night"))
            screenshot(page, "mlflow-compare")


def test_mlflow_shows_the_figures_of_a_run(links: dict[str, str], swept: Path) -> None:
    run = next(r for r in recorded(swept) if r.info.run_name == NAMES[0])
    url = f"{links['address']}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}/artifacts"
    with open_page(width=1500) as (page, _):
        page.goto(f"{url}?workflowType=machine_learning")
        page.get_by_role("button", name="Close").click()  # MLflow's assistant
        page.get_by_text("confusion_matrix.png").first.click()
        picture = page.locator("img[src*='confusion_matrix'], img[src^='blob:']").first
        expect(picture).to_be_visible()


def test_demo_shows_the_models_of_the_last_sweep_side_by_side(swept: Path) -> None:
    with demo(f"store={swept}", "models=simple,mlp") as (url, _), open_page() as (page, _):
        page.goto(url)
        page.wait_for_selector("body[data-ready]")
        expect(page.locator(".model h2")).to_have_text(["simple", "mlp"])
        draw(page, 7)
        expect(page.locator(".predicted")).to_have_text(["7", "7"])
