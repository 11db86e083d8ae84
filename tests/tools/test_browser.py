"""The report, MLflow's pages and the demo after a sweep, in a real browser."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.helpers.browser import draw, open_page, overflow_px, screenshot
from tests.helpers.cli import recorded, run
from tests.helpers.servers import demo, ui

pytestmark = pytest.mark.browser

SWEEP = ("data=mnist5k", "model=mlp,simple", "seed=0,1", "data.split_seed=0", "sweep.name=seen")
SWEEP += ("trainer.max_epochs=3", "tracking.figures=all")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a sweep of four trials."""
    store = tmp_path_factory.mktemp("swept")
    done = run("-m", f"store={store}", *SWEEP)
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
        expect(page.locator("#verdict p").first).to_contain_text("model=simple wins")
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


def test_mlflow_shows_exactly_the_trials_of_the_sweep(links: dict[str, str]) -> None:
    with open_page(width=1700) as (page, _):
        page.goto(links["sweep seen"])
        expect(page.get_by_text("4 matching runs")).to_be_visible()
        expect(page.locator("svg.main-svg").first).to_be_visible()
        screenshot(page, "mlflow-sweep")


def test_mlflow_compares_the_best_trials_in_parallel_coordinates(links: dict[str, str]) -> None:
    with open_page(width=1700, height=1000) as (page, _):
        page.goto(links["best 4 trials of seen"])
        expect(page.get_by_text("Comparing 4 Runs").first).to_be_visible()
        expect(page.get_by_text("Parallel Coordinates Plot")).to_be_visible()
        expect(page.locator(".parcoords, svg.main-svg").first).to_be_visible()
        screenshot(page, "mlflow-compare")


def test_mlflow_shows_the_figures_of_a_run(links: dict[str, str], swept: Path) -> None:
    run = next(r for r in recorded(swept) if r.data.tags.get("trial") == "0")
    url = f"{links['address']}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}/artifacts"
    with open_page(width=1700) as (page, _):
        page.goto(url)
        page.get_by_text("confusion_matrix.png").first.click()
        picture = page.locator("img[src*='confusion_matrix'], img[src^='blob:']").first
        expect(picture).to_be_visible()
        screenshot(page, "mlflow-run")


def test_demo_shows_the_models_of_the_last_sweep_side_by_side(swept: Path) -> None:
    with demo(f"store={swept}", "models=simple,mlp") as (url, _), open_page() as (page, _):
        page.goto(url)
        page.wait_for_selector("body[data-ready]")
        expect(page.locator(".model h2")).to_have_text(["simple", "mlp"])
        draw(page, 7)
        expect(page.locator(".predicted")).to_have_text(["7", "7"])
