"""The engine in applications of somebody else: scripts, modules, callbacks of their own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import engine
from tests.helpers.cli import ROOT, environment

APPS = Path(__file__).parent.parent / "helpers" / "apps"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A Hydra script with its configuration beside it, in a folder of its own."""
    for name in ("plain.py", "plain.yaml"):
        shutil.copy(APPS / name, tmp_path / name)
    return tmp_path / "plain.py"


def run_script(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, script.name, "-m", "store=.", *arguments],
        cwd=script.parent,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_script_with_config_beside_it_sweeps_twice(script: Path) -> None:
    """The copy of the configuration must not take in the sweeps' own directories."""
    for name in ("first", "second"):
        done = run_script(script, "x=1,2", f"sweep.name={name}")
        assert done.returncode == 0, done.stdout + done.stderr
    copied = script.parent / "second" / "conf"
    assert [path.name for path in copied.rglob("*")] == ["plain.yaml"]


def test_printed_command_names_the_users_script(script: Path) -> None:
    done = run_script(script, "x=1,2", "sweep.name=named")
    assert "train it again: python plain.py store=. x=2" in done.stdout


def test_task_knows_what_varies(script: Path) -> None:
    assert run_script(script, "x=1,2", "sweep.name=known").returncode == 0
    summaries = [trial.user_attrs["summary"] for trial in engine.trials(script.parent, "known")]
    assert summaries == [{"number": 0, "x": 1}, {"number": 1, "x": 2}]


def test_script_prunes_by_what_it_reports(script: Path) -> None:
    pruner = "+sweep.pruner={_target_: optuna.pruners.ThresholdPruner, lower: 2}"
    done = run_script(script, "x=1,2", "sweep.name=pruned", pruner)
    assert "trial 0 pruned" in done.stdout
    assert "trial 1 complete" in done.stdout


def test_final_report_prunes_no_trial(script: Path) -> None:
    """The pruner would stop x=1 at its third and last step, which is already done."""
    pruner = "+sweep.pruner={_target_: optuna.pruners.ThresholdPruner, upper: 2.5}"
    done = run_script(script, "x=1,2", "sweep.name=final", pruner)
    assert "trial 0 complete" in done.stdout
    assert "trial 1 pruned" in done.stdout


@pytest.mark.parametrize("name", [".", "..", "...", "a" * 300, "a/b", "it's"])
def test_name_that_is_no_folder_name_is_refused(name: str, script: Path) -> None:
    done = run_script(script, "x=1,2", f'sweep.name="{name}"')
    assert done.returncode != 0
    assert done.stderr.startswith("sweep.name="), done.stderr
    assert "expected" in done.stderr
    assert not list(script.parent.glob("*.db"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["x=1,1"], "x=1,1: a value appears twice"),
        (["x=1,2", "sweep.n_jobs=0"], "sweep.n_jobs=0: expected a number above 0"),
        (["x=1,2", "sweep.direction=up"], "sweep.direction=up: expected maximize or minimize"),
        (["x=1,2", "+sweep.sampler={_target_: os.system}"], "cannot build os.system"),
        (["x=interval(0,1)", "sweep.n_trials=0"], "sweep.n_trials=0"),
    ],
)
def test_mistake_is_refused_without_a_traceback(
    arguments: list[str], expected: str, script: Path
) -> None:
    done = run_script(script, *arguments)
    assert done.returncode != 0
    assert done.stderr.startswith(expected), done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name for path in script.parent.iterdir()} == {"plain.py", "plain.yaml"}


def test_mistake_in_the_users_own_file_is_refused(script: Path) -> None:
    file = script.parent / "plain.yaml"
    file.write_text(file.read_text().replace("sweep: {", "sweep: {grace_s: 0, retries: -1, "))
    done = run_script(script, "x=1,2")
    assert done.returncode != 0
    assert "sweep.grace_s=0: expected a number above 0" in done.stderr
    assert "sweep.retries=-1: expected 0 or more" in done.stderr
    assert "Traceback" not in done.stderr


def test_workers_start_where_warnings_are_errors(tmp_path: Path) -> None:
    """Hydra warns of a plugin that registers twice, in 1.5 it will be an error."""
    arguments = (f"store={tmp_path}", "x=1,2", "sweep.name=strict")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.helpers.apps.sleeper", "-m", *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert engine.states(engine.trials(tmp_path, "strict")) == {"COMPLETE": 2}


CALLBACKS = """
from pathlib import Path

from mnist_sweep.sweep import Sweep, SweepCallback

class Note(SweepCallback):
    def __init__(self, refuse=False):
        self.refuse = refuse

    def write(self, text):
        with open("notes.txt", "a") as notes:
            notes.write(text + "\\n")

    def on_sweep_prepare(self, sweep: Sweep):
        self.write("prepare")
        sweep.overrides.append("y=7")
        if self.refuse:
            raise ValueError("refused by the callback")

    def on_sweep_start(self, sweep, study):
        self.write(f"start {study.study_name}")
        sweep.links["look"] = "here"

    def on_sweep_end(self, sweep, study, error):
        self.write(f"end {error}")
"""


def test_callback_is_called_around_the_sweep(script: Path) -> None:
    (script.parent / "notes.py").write_text(CALLBACKS)
    callback = "+hydra.callbacks.note._target_=notes.Note"
    done = run_script(script, "x=1,2", "sweep.name=noted", callback)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "look: here" in done.stdout
    notes = (script.parent / "notes.txt").read_text().splitlines()
    assert notes == ["prepare", "start noted", "end None"]
    overrides = script.parent / "noted" / "0" / ".hydra" / "overrides.yaml"
    assert "y=7" in overrides.read_text()


def test_callback_that_refuses_leaves_no_study(script: Path) -> None:
    (script.parent / "notes.py").write_text(CALLBACKS)
    callback = "+hydra.callbacks.note={_target_: notes.Note, refuse: true}"
    done = run_script(script, "x=1,2", "sweep.name=noted", callback)
    assert done.returncode != 0
    assert "refused by the callback" in done.stderr
    assert not (script.parent / "optuna.db").exists()
    assert (script.parent / "notes.txt").read_text().splitlines() == ["prepare"]
