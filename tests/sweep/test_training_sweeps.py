"""Sweeps of real training through the command line."""

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import mlflow
import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState

from tests.helpers import cli, engine
from tests.helpers.cli import SMALL, environment, recorded
from tests.helpers.engine import run, states, trials

TINY = ("data=mnist5k", "data.train_size=200", "data.val_size=100", "trainer.max_epochs=1")
BARE = (*TINY, "tracking=none", "sweep.report=false")


def sweep(*arguments: str, store: Path, **env: str) -> str:
    code, out = run(*arguments, store=store, module="mnist_sweep", **env)
    assert code == 0, out
    return out


@pytest.mark.slow
def test_grid_of_three_models_end_to_end(store: Path) -> None:
    out = sweep("model=simple,deeper,vgg", "trainer=quick", *SMALL, "sweep.name=g", store=store)
    assert [t.params["model"] for t in trials(store, "g")] == ["simple", "deeper", "vgg"]
    table = out[out.index("rank  trial  configuration") :]
    for model, weights in (("simple", "421,642"), ("deeper", "870,634"), ("vgg", "2,921,930")):
        assert re.search(rf"model={model} .*{weights}", table), table
    assert f"compare the runs: python -m mnist_sweep ui store={store}" in out
    assert "http://127.0.0.1:5000/#/experiments/1/runs?" in out

    runs = [r for r in recorded(store) if "trial" in r.data.tags]
    assert {r.data.tags["model"] for r in runs} == {"simple", "deeper", "vgg"}
    assert {r.data.tags["sweep"] for r in runs} == {"g"}
    assert {r.info.status for r in recorded(store)} == {"FINISHED"}
    assert all("test/accuracy" in r.data.metrics for r in runs)
    [summary] = [r for r in recorded(store) if r.data.tags.get("kind") == "sweep"]
    assert summary.data.metrics["trials/complete"] == 3

    mlflow.set_tracking_uri(f"sqlite:///{store}/mlflow.db")
    vgg = next(r for r in runs if r.data.tags["model"] == "vgg")
    code = (
        "import sys; sys.modules['mnist_sweep'] = None\n"
        "import mlflow, numpy as np\n"
        f"model = mlflow.pyfunc.load_model('runs:/{vgg.info.run_id}/model')\n"
        "print(np.asarray(model.predict(np.zeros((3, 1, 28, 28), 'float32'))).shape)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        cwd=store,
        env=environment(MLFLOW_TRACKING_URI=f"sqlite:///{store}/mlflow.db"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "(3, 10)" in loaded.stdout, loaded.stderr


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ("model=simple,vvg", "did you mean 'vgg'?"),
        ("optimizer.lrr=1e-3,1e-2", "did you mean 'lr'?"),
        ("optimizer.lr=abc,1e-2", "could not be converted to Float"),
        ("data.batch_size=0,64", "a number above 0"),
        ("trainer.resume=/nowhere", "/nowhere/last.pt: no such checkpoint"),
    ],
)
def test_bad_sweep_is_refused_before_anything_is_created(
    bad: str, expected: str, fresh: Path
) -> None:
    code, out = run(bad, store=fresh, module="mnist_sweep")
    assert code == 2, out
    assert expected in out
    assert len(out.strip().splitlines()) == 1
    assert [p.name for p in fresh.iterdir()] == ["out.txt"]


@pytest.mark.slow
def test_leaderboard_shows_mean_and_deviation_over_seeds(fresh: Path) -> None:
    out = sweep("seed=0,1", "optimizer.lr=1e-3,3e-3", *BARE, store=fresh)
    assert len(re.findall(r" 2 +optimizer\.lr=\S+ +\d+\.\d\d ± \d+\.\d\d", out)) == 2
    assert not (fresh / "mlflow.db").exists(), "tracking=none"


@pytest.mark.slow
def test_pruning_saves_half_the_epochs_and_finds_as_good_a_model(store: Path) -> None:
    common = (
        "search=random",
        "sweep.n_trials=40",
        "optimizer.lr=tag(log,interval(1e-4,1e-1))",
        "data.batch_size=choice(32,64,128)",
        "model=mlp",
        "data=mnist5k",
        "data.train_size=1000",
        "data.val_size=500",
        "trainer.max_epochs=8",
        "tracking=none",
        "sweep.report=false",
        "sweep.max_failure_rate=1",
    )
    epochs, best = {}, {}
    for name, pruner in (("pruned", "asha"), ("whole", "none")):
        engine.run(
            *common, f"pruner={pruner}", f"sweep.name={name}", store=store, module="mnist_sweep"
        )
        found = [t for t in trials(store, name) if t.state in engine.DONE]
        assert len(found) == 40
        epochs[name] = sum(t.last_step or 0 for t in found)
        best[name] = max(t.value for t in found if t.state is TrialState.COMPLETE)
    assert states(trials(store, "pruned"))["PRUNED"] > 10
    assert epochs["pruned"] <= epochs["whole"] / 2, epochs
    assert best["pruned"] >= best["whole"] - 0.005, best


@pytest.mark.slow
def test_pruned_trial_keeps_its_epochs_and_its_run_is_finished(store: Path) -> None:
    sweep(
        "optimizer.lr=3e-3,1e-7",
        "pruner=median",
        "sweep.pruner.n_startup_trials=1",
        *TINY,
        "trainer.max_epochs=4",
        "sweep.name=p",
        "tracking.log_model=false",
        store=store,
    )
    found = trials(store, "p")
    assert states(found) == {"COMPLETE": 1, "PRUNED": 1}
    runs = {r.data.tags["trial"]: r for r in recorded(store) if "trial" in r.data.tags}
    assert runs["1"].info.status == "FINISHED"
    assert runs["1"].data.tags["state"] == "pruned"
    assert "val/accuracy" in runs["1"].data.metrics
    assert "test/accuracy" not in runs["1"].data.metrics, "the test set was not looked at"


@pytest.mark.slow
def test_search_with_two_objectives_shows_the_pareto_front(store: Path) -> None:
    space = ("model=mlp,compact", "data.batch_size=choice(32,64)")
    out = sweep("search=pareto", "sweep.n_trials=4", *space, *TINY, store=store)
    assert "on the Pareto front" in out
    [summary] = [r for r in recorded(store) if r.data.tags.get("kind") == "sweep"]
    names = {f.path for f in mlflow.MlflowClient(f"sqlite:///{store}/mlflow.db").list_artifacts(
        summary.info.run_id
    )}  # fmt: skip
    assert {"report.html", "trials.csv", "sweep.yaml"} <= names
    page = (store / "outputs" / summary.data.tags["sweep"] / "report" / "report.html").read_text()
    assert "Pareto front" in page


@pytest.mark.slow
@pytest.mark.parametrize("search", ["tpe", "gp", "cmaes"])
def test_every_search_runs_and_prints_a_command_that_trains_its_best(
    search: str, store: Path
) -> None:
    space = () if search == "cmaes" else ("model=mlp,compact", "data.batch_size=choice(32,64)")
    out = sweep(f"search={search}", "sweep.n_trials=3", *space, *BARE, store=store)
    again = re.search(r"train it again: python -m mnist_sweep (.*)", out)
    assert again
    done = cli.run(*again.group(1).split())
    assert done.returncode == 0, done.stderr
    value = float(re.search(r"best: trial \d+ complete  val/accuracy (\S+)", out).group(1))
    reached = float(re.search(r"validation (\S+) %", done.stdout).group(1))
    assert reached == pytest.approx(100 * value, abs=0.011), "bit by bit the same run"


@pytest.mark.slow
def test_top_k_keeps_the_models_of_the_best(store: Path) -> None:
    space = ("optimizer.lr=1e-3,1e-6,1e-7", *TINY)
    arguments = (*space, "sweep.top_k=1", "sweep.name=t", "sweep.report=false")
    sweep(*arguments, store=store)
    sweep(*arguments, store=store)  # with nothing left to do, or to delete
    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    version = client.get_model_version_by_alias("mnist-sweep", "challenger")
    assert mlflow.artifacts.list_artifacts(version.source)
    directories = store / "outputs" / "t"
    assert (directories / "0" / "best.pt").exists()
    assert not (directories / "1" / "best.pt").exists()
    runs = {r.data.tags["trial"]: r for r in recorded(store) if "trial" in r.data.tags}
    mlflow.set_tracking_uri(f"sqlite:///{store}/mlflow.db")
    assert mlflow.pyfunc.load_model(f"runs:/{runs['0'].info.run_id}/model")
    assert len(list((store / "artifacts" / "models").glob("m-*/artifacts/MLmodel"))) == 1


@pytest.mark.slow
def test_ray_runs_the_workers(store: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra [ray]")
    arguments = ("optimizer.lr=1e-3,2e-3", *BARE, "hydra/launcher=ray", "sweep.n_jobs=2")
    sweep(*arguments, "sweep.name=ray", store=store, RAY_TMPDIR="/tmp")
    assert states(trials(store, "ray")) == {"COMPLETE": 2}


@pytest.mark.slow
def test_optuna_dashboard_opens_the_storage(store: Path) -> None:
    run("x=interval(0,1)", "sweep.n_trials=2", "sweep.name=d", store=store)
    port = str(20000 + os.getpid() % 20000)
    server = subprocess.Popen(
        [Path(sys.executable).parent / "optuna-dashboard", f"sqlite:///{store}/optuna.db",
         "--host", "127.0.0.1", "--port", port],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def answers() -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=5) as page:
                return b'"d"' in page.read()
        except OSError:
            return False

    try:
        engine.wait_for(answers, 60)
    finally:
        server.terminate()
        server.wait(20)
