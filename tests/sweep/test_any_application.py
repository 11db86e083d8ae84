"""The sweeper in Hydra applications that know nothing of it but `hydra/sweeper: mnist_sweep`."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from omegaconf import OmegaConf

from tests.helpers.cli import ROOT, environment

SCRIPT = """
import hydra

@hydra.main(config_path=".", config_name="config")
def task(cfg):
    {body}

def more(cfg, trial):
    trial.suggest_float("+w", 0, cfg.y)

if __name__ == "__main__":
    task()
"""
CONFIG = """
defaults:
  - _self_
  - override hydra/sweeper: mnist_sweep
  - override hydra/launcher: mnist_sweep
x: 1
y: 2
"""


class App:
    """An application in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, body: str = "return cfg.x", config: str = "") -> None:
        (self.folder / "train.py").write_text(SCRIPT.format(body=body))
        (self.folder / "config.yaml").write_text(CONFIG + config)

    def run(self, *arguments: str, program: tuple[str, ...] = ("train.py",)) -> str:
        """Run a sweep. Returns its output, with the exit code in the first line."""
        done = subprocess.run(
            [sys.executable, *program, "-m", *arguments],
            cwd=self.folder,
            env=environment(PYTHONPATH=str(ROOT)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        return f"{done.returncode}\n{done.stdout}"

    def trials(self, name: str, database: str = "multirun/optuna.db") -> list[Any]:
        storage = f"sqlite:///{self.folder / database}"
        return optuna.load_study(study_name=name, storage=storage).trials

    def results(self, directory: str) -> Any:
        return OmegaConf.load(self.folder / directory / "optimization_results.yaml")


@pytest.fixture
def app(tmp_path: Path) -> App:
    made = App(tmp_path)
    made.write()
    return made


def test_choices_make_a_grid_in_a_directory_named_after_the_sweep(app: App) -> None:
    output = app.run("x=3,1,2", "hydra.sweeper.name=first", "hydra.sweeper.n_jobs=2")
    assert output.startswith("0\n"), output
    assert "train it again: python train.py x=1" in output
    assert [trial.value for trial in app.trials("first")] == [3, 1, 2]
    assert (app.folder / "multirun/first/2/.hydra/config.yaml").exists()
    assert (app.folder / "multirun/first/multirun.yaml").exists()


def test_sweep_without_a_name_gets_one(app: App) -> None:
    assert app.run("x=1,2").startswith("0\n")
    (directory,) = (path for path in (app.folder / "multirun").iterdir() if path.is_dir())
    assert [trial.value for trial in app.trials(directory.name)] == [1, 2]


def test_second_call_continues_the_search(app: App) -> None:
    search = ("x=interval(0.0,1.0)", "hydra.sweeper.study_name=s")
    assert app.run(*search, "hydra.sweeper.n_trials=2").startswith("0\n")
    first = app.trials("s")
    assert app.run(*search, "hydra.sweeper.n_trials=4").startswith("0\n")
    assert [t.params for t in app.trials("s")][:2] == [t.params for t in first]
    assert len(app.trials("s")) == 4


def test_search_is_named_where_its_settings_stand(app: App) -> None:
    output = app.run("x=1,2", "hydra.sweeper.n_jobs=0", "hydra.sweeper.storage=journal:///x")
    assert output.splitlines()[:2] == ["1", "hydra.sweeper.n_jobs=0: expected a number above 0"]
    output = app.run("x=1,2", "hydra.sweeper.storage=journal:///x")
    assert output.splitlines()[1].startswith("hydra.sweeper.storage=journal:///x: a journal file")
    output = app.run("x=1,2", "hydra.sweeper.study_name=a/b")
    assert output.splitlines()[1].startswith("hydra.sweeper.name=a/b: expected letters")
    assert {path.name for path in app.folder.iterdir()} == {"train.py", "config.yaml"}


def test_users_own_directories_hold(app: App) -> None:
    dirs = ("hydra.sweep.dir=mine", "hydra.sweep.subdir=x${x}")
    assert app.run("x=1,2", "hydra.sweeper.name=own", *dirs).startswith("0\n")
    assert (app.folder / "mine/x2/.hydra").exists()
    recorded = [trial.user_attrs["directory"] for trial in app.trials("own")]
    assert recorded == [str(app.folder / "mine/x1"), str(app.folder / "mine/x2")]


def test_two_sweeps_in_one_directory_have_their_own_configurations(app: App) -> None:
    assert app.run("x=1,2", "hydra.sweeper.name=a", "hydra.sweep.dir=mine").startswith("0\n")
    app.write(body="return cfg.x + cfg.y", config="z: 1\n")
    (app.folder / "config.yaml").write_text(CONFIG.replace("y: 2", "y: 10"))
    assert app.run("x=1,2", "hydra.sweeper.name=b", "hydra.sweep.dir=mine").startswith("0\n")
    assert [trial.value for trial in app.trials("b")] == [11, 12]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return {'loss': cfg.x, 'other': 5}", [1, 2]),
        ("current_trial().report(1, {'loss': cfg.x, 'other': 5})", [1, 2]),
        ("current_trial().report(1, {'only': cfg.x + 1})", None),
    ],
    ids=["returned", "reported", "missing"],
)
def test_objective_is_picked_by_its_name(app: App, body: str, expected: Any) -> None:
    app.write(f"from mnist_sweep.sweep import current_trial; {body}")
    output = app.run("x=1,2", "hydra.sweeper.name=s", "hydra.sweeper.objective=loss")
    if expected is None:
        assert "no objective loss; there are only" in output
    else:
        assert [trial.value for trial in app.trials("s")] == expected


def test_grid_of_a_task_that_returns_nothing(app: App) -> None:
    app.write("print(cfg.x)")
    output = app.run("x=1,2", "hydra.sweeper.name=s")
    assert output.startswith("0\n"), output
    assert "trial 1 complete  x=2" in output
    assert "the task returns nothing to compare" in output
    assert "best" not in output
    output = app.run("x=interval(0.0,1.0)", "hydra.sweeper.n_trials=1", "hydra.sweeper.retries=0")
    assert "a search needs a number to optimise" in output
    assert output.startswith("1\n")


def test_trial_knows_its_directory_and_number(app: App) -> None:
    app.write(
        "from mnist_sweep.sweep import current_trial; trial = current_trial(); "
        "open(trial.directory / 'mine', 'w').write(trial.sweep); return trial.number"
    )
    assert app.run("x=1,2", "hydra.sweeper.name=s").startswith("0\n")
    assert [trial.value for trial in app.trials("s")] == [0, 1]
    assert (app.folder / "multirun/s/1/mine").read_text() == "s"


def test_module_in_a_package(tmp_path: Path) -> None:
    """Hydra reads the configuration of `python -m` from the package."""
    package = tmp_path / "shop"
    package.mkdir()
    (package / "__init__.py").touch()
    app = App(package)
    app.write()
    app.folder = tmp_path
    output = app.run("x=1,2", "hydra.sweeper.name=s", program=("-m", "shop.train"))
    assert output.startswith("0\n"), output
    assert "train it again: python -m shop.train x=1" in output
    assert (tmp_path / "multirun/s/conf/config.yaml").exists()


def test_task_that_a_worker_must_import_from_the_scripts_folder(app: App) -> None:
    (app.folder / "helper.py").write_text("def double(x):\n    return 2 * x\n")
    app.write("from helper import double; return double(cfg.x)")
    assert app.run("x=1,2", "hydra.sweeper.name=s").startswith("0\n")
    assert [trial.value for trial in app.trials("s")] == [2, 4]


@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_sweeper_works_with_other_launchers(app: App, launcher: str) -> None:
    output = app.run("x=1,2", "hydra.sweeper.name=s", f"hydra/launcher={launcher}")
    assert output.startswith("0\n"), output
    assert [trial.value for trial in app.trials("s")] == [1, 2]


STRUCTURED = """
from dataclasses import dataclass
import pickle, sys
import hydra
from hydra.core.config_store import ConfigStore

@dataclass
class Config:
    x: int = 1
    y: int = 2

class Mine:
    pass

ConfigStore.instance().store(name="config", node=Config)
ConfigStore.instance().store(name="other", node=Config(y=20))

@hydra.main(config_path=None, config_name="config")
def task(cfg):
    assert isinstance(pickle.loads(pickle.dumps(Mine())), Mine)
    return cfg.x + cfg.y

if __name__ == "__main__":
    task()
"""


@pytest.mark.parametrize("launcher", ["mnist_sweep", "basic"])
def test_script_with_classes_of_its_own_and_no_file(app: App, launcher: str) -> None:
    (app.folder / "train.py").write_text(STRUCTURED)
    chosen = ("hydra/sweeper=mnist_sweep", f"hydra/launcher={launcher}", "--config-name=other")
    output = app.run("x=1,2,3", "hydra.sweeper.name=s", *chosen)
    values = [trial.value for trial in app.trials("s")]
    assert values == [21, 22, 23], output
    assert "train it again: python train.py --config-name=other x=1" in output


def test_sweeper_that_a_config_group_chooses(app: App) -> None:
    (app.folder / "hs").mkdir()
    (app.folder / "hs/g.yaml").write_text(
        "# @package _global_\ndefaults: [{override /hydra/sweeper: mnist_sweep}]\n"
    )
    (app.folder / "config.yaml").write_text("defaults: [_self_, {hs: null}]\nx: 1\ny: 2\n")
    output = app.run("x=1,2", "hs=g", "hydra.sweeper.name=s")
    assert [trial.value for trial in app.trials("s")] == [1, 2], output


def test_time_limit_wakes_a_task_that_sleeps_in_the_driver(app: App) -> None:
    app.write("import time; time.sleep(60 if cfg.x == 1 else 0); return cfg.x")
    limit = ("hydra/launcher=basic", "hydra.sweeper.trial_timeout_s=1")
    output = app.run("x=1,2", "hydra.sweeper.name=s", *limit)
    assert "longer than hydra.sweeper.trial_timeout_s=1" in output
    assert [trial.state.name for trial in app.trials("s")] == ["FAIL", "COMPLETE"]


def test_worker_that_a_task_ends_is_started_again(app: App) -> None:
    app.write("import sys; cfg.x != 2 and sys.exit(0); return cfg.x")
    output = app.run("x=1,2", "hydra.sweeper.name=s", "hydra.sweeper.retries=1")
    assert "its process ended 2 times in a row without progress" in output
    states = [trial.state.name for trial in app.trials("s") if "replaced" not in trial.user_attrs]
    assert sorted(states) == ["COMPLETE", "FAIL"]


@pytest.mark.parametrize("sweeper", ["basic", "optuna"])
def test_other_sweepers_keep_working(app: App, sweeper: str) -> None:
    output = app.run("x=1,2", f"hydra/sweeper={sweeper}")
    assert output.startswith("0\n"), output


# What the stock Optuna sweeper does with its own keys. DATABASE stands for its storage.
DATABASE = "hydra.sweeper.storage=sqlite:///own.db"
KEYS = (DATABASE, "hydra.sweeper.study_name=s", "hydra.sweep.dir=out", "hydra.sweeper.n_jobs=1")


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsgaii", "nsgaiii", "gp", "qmc"])
def test_stock_samplers(app: App, sampler: str) -> None:
    output = app.run(
        "x=interval(-1.0,1.0)",
        *KEYS,
        f"hydra/sweeper/sampler={sampler}",
        "hydra.sweeper.sampler.seed=123",
        "hydra.sweeper.n_trials=3",
    )
    assert output.startswith("0\n"), output
    best = min(app.trials("s", "own.db"), key=lambda trial: trial.value)
    assert app.results("out") == {
        "name": "optuna",
        "study": "s",
        "best_params": best.params,
        "best_value": best.value,
    }


def test_stock_search_of_choices(app: App) -> None:
    """With a number of trials, choices are searched, also if there are fewer of them."""
    output = app.run("x=choice(0,1,2)", "y=0", *KEYS, "hydra.sweeper.n_trials=5")
    assert output.startswith("0\n"), output
    assert len(app.trials("s", "own.db")) == 5
    assert "y" not in app.results("out").best_params


@pytest.mark.parametrize(("n_trials", "expected"), [(2, 2), (99, 4)])
def test_stock_grid(app: App, n_trials: int, expected: int) -> None:
    grid = ("hydra/sweeper/sampler=grid", f"hydra.sweeper.n_trials={n_trials}")
    assert app.run("x=1,2", "y=range(0,2)", *KEYS, *grid).startswith("0\n")
    assert len(app.trials("s", "own.db")) == expected
    output = app.run("x=interval(0.0,1.0)", *grid)
    assert "a grid has no intervals" in output


def test_stock_params_and_custom_search_space(app: App) -> None:
    app.write(
        body="return cfg.x + cfg.y + cfg.get('w', 0)",
        config="""
hydra:
  sweeper:
    direction: maximize
    n_trials: 4
    params:
      x: interval(-5.0, 5.0)
      y: choice(1, 2)
""",
    )
    extended = "hydra.sweeper.custom_search_space=__main__.more"
    assert app.run(*KEYS, "y=10", extended).startswith("0\n")
    trials = app.trials("s", "own.db")
    assert {tuple(sorted(trial.params)) for trial in trials} == {("+w", "x")}
    assert trials[0].value == pytest.approx(10 + trials[0].params["x"] + trials[0].params["+w"])
    assert app.results("out").best_value == max(trial.value for trial in trials)


def test_stock_several_objectives(app: App) -> None:
    app.write("return cfg.x, -cfg.x", config="hydra: {sweeper: {direction: [minimize, maximize]}}")
    assert app.run("x=interval(0.0,1.0)", *KEYS, "hydra.sweeper.n_trials=4").startswith("0\n")
    solutions = app.results("out").solutions
    assert {tuple(s.values()) for s in (s.params for s in solutions)}
    assert all(s["values"] == [s.params.x, -s.params.x] for s in solutions)


@pytest.mark.parametrize(("rate", "most"), [("0.0", 1), ("0.5", 3), ("1.0", 5)])
def test_stock_failure_rate(app: App, rate: str, most: int) -> None:
    """Other trials take the place of those that fail, until there are more of these than allowed."""
    app.write("raise RuntimeError('on purpose')")
    search = ("x=interval(0.0,1.0)", "hydra.sweeper.n_trials=4")
    output = app.run(*search, *KEYS, f"hydra.sweeper.max_failure_rate={rate}")
    assert output.startswith("1\n")
    assert "RuntimeError: on purpose" in output
    assert len(app.trials("s", "own.db")) == most
