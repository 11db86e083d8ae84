"""The benchmarks run and write every row. Their results are not tested."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import measure
from benchmarks.__main__ import main
from benchmarks.measure import Row, alternating_medians
from tests.helpers.cli import run

MODELS = ("simple", "deeper", "vgg")


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("startup", ["start-up: --help", "start-up: a config error", "start-up: a run"]),
        (
            "training",
            [f"training {m}" for m in MODELS for _ in range(2)] + ["training vgg in"] * 2,
        ),
        ("fast99", ["fast99"] * 3),
        ("tracking", ["tracking"]),
        (
            "search",
            (["search: regret after 5 trials"] * 12 + ["search: mean rank after 5 trials"] * 6)
            + (["search: regret after 15 trials"] * 12 + ["search: mean rank after 15"] * 6)
            + ["search: NAS-Bench-201, regret after 15 trials"] * 6,
        ),
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
def test_quick_part_prints_and_writes_every_row(
    part: str,
    expected: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "figures.json"
    monkeypatch.setattr(measure, "subprocess", SimpleNamespace(run=run_forked))
    monkeypatch.setattr(sys, "argv", ["benchmarks", part, "--quick", "--json", str(file)])
    main()
    check(capsys.readouterr().out, file, expected)


def run_forked(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
    """Run a command of the benchmarks in a fork where possible: the tests need no true times."""
    _, option, program, *arguments = command
    if option == "-m":
        return run(*arguments, module=program)
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_benchmarks_run_as_a_program(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = run("memory", "--quick", "--json", str(file), module="benchmarks")
    assert done.returncode == 0, done.stderr
    check(done.stdout, file, ["memory"])


def check(output: str, file: Path, expected: list[str]) -> None:
    """Check the printed and the written figures of a part against the names of its rows."""
    assert "met?" in output
    written = json.loads(file.read_text())
    assert written["machine"]["torch"]
    assert len(written["rows"]) == len(expected)
    for row, name in zip(written["rows"], expected, strict=True):
        assert row["name"].startswith(name)
        assert row["peer"] is None or row["ratio"] == row["ours"] / row["peer"]


def test_target_applies_to_the_ratio_if_there_is_a_peer() -> None:
    assert Row("speed", "images/s", 200.0, 100.0, target=1.7, bound="at least").met
    assert not Row("speed", "images/s", 160.0, 100.0, target=1.7, bound="at least").met
    assert Row("time", "s", 1.4, target=1.5).met
    assert Row("time", "s", 1.4).met is None


def test_medians_alternate_and_skip_the_warm_up() -> None:
    calls: list[str] = []
    results = iter([100.0, 1.0, 2.0, 9.0])

    def ours() -> float:
        calls.append("ours")
        return next(results)

    def peer() -> float:
        calls.append("peer")
        return 5.0

    assert alternating_medians({"ours": ours, "peer": peer}, 3) == {"ours": 2.0, "peer": 5.0}
    assert calls == ["ours", "peer"] * 4
