"""The report and MLflow's pages as a person sees them, in a real browser."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.helpers.browser import opened
from tests.helpers.cli import ROOT, environment, recorded
from tests.tools.test_demo import draw, served
from tests.tools.test_ui import running

pytestmark = pytest.mark.browser

SWEEP = ("data=mnist5k", "model=mlp,simple", "seed=0,1", "data.split_seed=0", "sweep.name=seen")
SWEEP += ("trainer.max_epochs=3", "tracking.figures=all")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a sweep of four trials."""
    store = tmp_path_factory.mktemp("swept")
    done = subprocess.run(
        [sys.executable, "-m", "mnist_sweep", "-m", *SWEEP],
        cwd=ROOT,
        env=environment(MNIST_SWEEP_STORE=str(store)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return store


@pytest.fixture(scope="module")
def links(swept: Path) -> Iterator[dict[str, str]]:
    """What `mnist_sweep.ui` prints, while it runs."""
    with running(swept, "5317") as (lines, base):
        links = dict(line.strip().split(": ", 1) for line in lines)
        yield {**links, "base": base}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_opens_from_disk_draws_and_sorts(swept: Path, scheme: str) -> None:
    with opened(scheme=scheme) as seen:
        page = seen.page
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
            seen.picture("report")
        assert seen.complaints == []
        assert {url.split(":")[0] for url in seen.requests} <= {"file", "data", "blob"}


def test_report_fits_a_phone(swept: Path) -> None:
    with opened(width=390, height=800) as seen:
        seen.page.goto((swept / "outputs" / "seen" / "report" / "report.html").as_uri())
        seen.page.wait_for_selector("body[data-drawn]")
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert seen.page.evaluate(wide) <= 0


def test_mlflow_shows_exactly_the_runs_of_the_sweep(links: dict[str, str]) -> None:
    with opened(width=1700) as seen:
        seen.page.goto(links["sweep seen"])
        expect(seen.page.get_by_text("4 matching runs")).to_be_visible()
        expect(seen.page.locator("svg.main-svg").first).to_be_visible()
        seen.picture("mlflow-sweep")


def test_mlflow_compares_the_best_in_parallel_coordinates(links: dict[str, str]) -> None:
    with opened(width=1700, height=1000) as seen:
        seen.page.goto(links["its best 4"])
        expect(seen.page.get_by_text("Comparing 4 Runs").first).to_be_visible()
        expect(seen.page.get_by_text("Parallel Coordinates Plot")).to_be_visible()
        expect(seen.page.locator(".parcoords, svg.main-svg").first).to_be_visible()
        seen.picture("mlflow-compare")


def test_mlflow_shows_the_pictures_of_a_run(links: dict[str, str], swept: Path) -> None:
    run = next(r for r in recorded(swept) if r.data.tags.get("trial") == "0")
    url = f"{links['base']}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}/artifacts"
    with opened(width=1700) as seen:
        seen.page.goto(url)
        seen.page.get_by_text("confusion_matrix.png").first.click()
        picture = seen.page.locator("img[src*='confusion_matrix'], img[src^='blob:']").first
        expect(picture).to_be_visible()
        seen.picture("mlflow-run")


def test_models_of_the_last_sweep_answer_side_by_side(swept: Path) -> None:
    with served(f"store={swept}", "models=simple,mlp", "port=7951") as url, opened() as seen:
        seen.page.goto(url)
        seen.page.wait_for_selector("body[data-ready]")
        expect(seen.page.locator(".model h2")).to_have_text(["simple", "mlp"])
        draw(seen.page, "7")
        expect(seen.page.locator(".said")).to_have_text(["7", "7"])
