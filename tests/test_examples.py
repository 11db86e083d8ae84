"""The applications in examples/, run as their comments say."""

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.helpers.cli import ROOT, environment

EXAMPLES = ROOT / "examples"


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "train.py", *arguments],
        cwd=folder,
        env=environment(PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(folder: Path, *arguments: str) -> str:
    process = start(folder, *arguments)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def trials(folder: Path, name: str) -> list[Any]:
    storage = f"sqlite:///{folder}/multirun/optuna.db"
    return optuna.load_study(study_name=name, storage=storage).trials


@pytest.fixture
def example(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(EXAMPLES / request.param, tmp_path / "app"))


@pytest.mark.parametrize("example", ["digits"], indirect=True)
def test_grid_and_search_of_a_script_that_knows_no_sweep(example: Path) -> None:
    assert "mnist_sweep" not in (example / "train.py").read_text()
    output = run(example, "-m", "model=svc,forest", "hydra.sweeper.name=grid")
    assert re.search(r"1 +0 +model=svc +95\.", output), output
    search = ("model.C=tag(log, interval(0.1, 100.0))", "hydra.sweeper.n_trials=3")
    output = run(example, "-m", *search, "hydra.sweeper.name=search")
    assert "3 complete" in output
    assert "train it again: python train.py model.C=" in output


@pytest.mark.parametrize("example", ["tabular"], indirect=True)
def test_search_of_a_network_prunes_and_continues_after_ctrl_c(example: Path) -> None:
    command = ("-m", "hydra.sweeper.study_name=night", "epochs=60")
    first = start(example, *command)
    deadline = time.monotonic() + 120
    while not list(example.glob("multirun/night/1/last.pt")):
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    output, _ = first.communicate(timeout=60)
    assert first.returncode == 130, output
    assert "resume with:\n  python train.py -m" in output
    interrupted = [t.number for t in trials(example, "night") if "replaced" in t.user_attrs]

    output = run(example, *command)
    states = [trial.state.name for trial in trials(example, "night")]
    assert states.count("COMPLETE") + states.count("PRUNED") == 12
    assert states.count("PRUNED") > 0
    for number in interrupted:
        log = example / "multirun/night" / str(number) / "train.log"
        last = re.findall(r"epoch (\d+)", log.read_text())[-1]
        retries = [t for t in trials(example, "night") if "resume" in t.user_attrs]
        logs = [example / f"multirun/night/{t.number}/train.log" for t in retries]
        starts = [re.findall(r"epoch (\d+)", each.read_text())[0] for each in logs]
        assert str(int(last) + 1) in starts
