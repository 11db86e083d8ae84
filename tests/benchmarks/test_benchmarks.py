"""That the benchmark measures what it says it does; what the figures are is not a test's business."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measure import Row, medians
from tests.helpers.cli import ROOT, environment

TRAINED = ("simple", "deeper", "vgg")


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("startup", ["start-up: --help", "start-up: a config error", "start-up: a run"]),
        ("memory", ["memory"]),
        (
            "training",
            [f"training {m}" for m in TRAINED for _ in range(2)] + ["training vgg in"] * 2,
        ),
        ("fast99", ["fast99"] * 3),
        ("tracking", ["tracking"]),
        pytest.param(
            "sweep",
            ["sweep: engine, trial 25 of a grid", "sweep: engine, test and record a trial"]
            + ["sweep: a trial to its first step"]
            + [f"sweep: trials an hour, {k} at once" for k in (1, 2)],
            marks=pytest.mark.slow,
        ),
        pytest.param("report", ["report of "] * 3, marks=pytest.mark.slow),
    ],
)
def test_benchmark_quick_prints_and_writes_every_row(
    part: str, expected: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "mnist_sweep.benchmark", part, "--quick", "--json", str(file)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "met?" in done.stdout
    written = json.loads(file.read_text())
    assert written["machine"]["torch"]
    assert len(written["rows"]) == len(expected)
    for row, what in zip(written["rows"], expected, strict=True):
        assert row["what"].startswith(what)
        assert row["peer"] is None or row["ratio"] == row["ours"] / row["peer"]


def test_benchmark_row_judges_the_ratio_where_there_is_a_peer() -> None:
    assert Row("speed", "images/s", 200.0, 100.0, bar=1.7, needs="at least").met
    assert not Row("speed", "images/s", 160.0, 100.0, bar=1.7, needs="at least").met
    assert Row("time", "s", 1.4, bar=1.5).met
    assert Row("time", "s", 1.4).met is None


def test_benchmark_turns_rotate_and_the_first_is_left_out() -> None:
    taken: list[str] = []
    results = iter([100.0, 1.0, 2.0, 9.0])

    def ours() -> float:
        taken.append("ours")
        return next(results)

    def peer() -> float:
        taken.append("peer")
        return 5.0

    assert medians({"ours": ours, "peer": peer}, 3) == {"ours": 2.0, "peer": 5.0}
    assert taken == ["ours", "peer"] * 4
