"""What the application does around a run and before a sweep."""

import signal
import time
from pathlib import Path
from subprocess import PIPE, STDOUT

import optuna
import pytest
from omegaconf import OmegaConf
from optuna.distributions import IntDistribution

from mnist_sweep.callbacks import KeepBest
from mnist_sweep.common.errors import UserError
from mnist_sweep.config import check
from mnist_sweep.sweep import Sweep
from tests.helpers.cli import cli, run, start
from tests.helpers.configs import composed


def test_search_on_the_test_set_is_refused() -> None:
    cfg = composed("data=mnist5k")
    cfg.sweep.objectives = {"test/accuracy": "maximize", "fit_s": "minimize"}
    with pytest.raises(
        UserError, match=r"sweep\.objectives=test/accuracy: a search on the test set"
    ):
        check(cfg)


def test_failed_start_keeps_what_was_in_the_directory(tmp_path: Path) -> None:
    directory = tmp_path / "mine"
    directory.mkdir()
    (directory / "notes.txt").write_text("keep me")
    done = cli(
        "data=mnist5k", "data.batch_size=0", f"hydra.run.dir={directory}", store=tmp_path / "s"
    )
    assert done.returncode == 2
    assert (directory / "notes.txt").read_text() == "keep me"


def test_top_k_deletes_only_in_the_directory_of_its_sweep(tmp_path: Path) -> None:
    """Others may write to the database, which names a directory for each trial."""
    sweep, elsewhere = tmp_path / "outputs" / "s", tmp_path / "elsewhere"
    study = optuna.create_study(direction="maximize")
    for i in range(3):
        trial = optuna.create_trial(
            value=i,
            params={"x": i},
            distributions={"x": IntDistribution(0, 2)},
            user_attrs={"directory": str(elsewhere)},
        )
        study.add_trial(trial)
    files = [folder / "best.pt" for folder in (elsewhere, sweep / "0", sweep / "1", sweep / "2")]
    for file in files:
        file.parent.mkdir(parents=True)
        file.touch()
    config = OmegaConf.create({"sweep": {"top_k": 1}, "tracking": {"enabled": False}})
    KeepBest().on_sweep_end(
        Sweep("s", sweep, config.sweep, {}, config, config, [], []), study, None
    )
    kept = {file.parent for file in files if file.exists()}
    assert kept == {elsewhere, sweep / "2"}


def test_interrupted_run_prints_the_command_that_resumes_it(store: Path) -> None:
    arguments = ("data=mnist5k", "model=compact", "tracking=none", "trainer.max_epochs=200")
    process = start(f"store={store}", *arguments, stdout=PIPE, stderr=STDOUT)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("epoch"):
            break
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in rest
    assert "interrupted in epoch" in rest or "interrupted after epoch" in rest
    resume = rest.splitlines()[-1].strip()
    directory = next(ln for ln in lines if ln.startswith("run directory: ")).split(": ")[1].strip()
    expected = ("python -m mnist_sweep", *arguments, f"trainer.resume={directory}")
    assert resume == f"{expected[0]} store={store} " + " ".join(expected[1:])
    again = run(*resume.split()[3:], "trainer.max_minutes=0.001")
    assert again.returncode == 0, again.stdout + again.stderr
    assert directory in again.stdout
