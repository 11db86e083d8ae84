"""The command line in real processes, each with a store of its own."""

import os
import subprocess
import sys
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

ROOT = Path(__file__).parent.parent.parent
HAS_MNIST = "MNIST_SWEEP_DATA" in os.environ
# The smallest run that learns: real MNIST if MNIST_SWEEP_DATA is set, the embedded sample otherwise.
SMALL = [
    f"data={'mnist' if HAS_MNIST else 'mnist5k'}",
    "data.train_size=600",
    "data.val_size=400",
    "trainer.max_epochs=1",
]


def environment(**changes: str) -> dict[str, str]:
    """Return this process's variables, without those of MLflow and Hydra, with `changes`."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "HYDRA_"))}
    return {**env, "OMP_NUM_THREADS": "1", **changes}


def command(*arguments: str, store: Path) -> list[str]:
    return [sys.executable, "-m", "mnist_sweep", f"store={store}", *arguments]


def cli(
    *arguments: str, store: Path, fresh: bool = False, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m mnist_sweep store=... ARGUMENTS` and return its exit code and output."""
    return _run(f"store={store}", *arguments, env=env)


def tool(name: str, *arguments: str, store: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the tool `python -m mnist_sweep NAME store=... ARGUMENTS`."""
    return _run(name, f"store={store}", *arguments, env=env)


def _run(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mnist_sweep", *arguments],
        cwd=ROOT,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def succeed(*arguments: str, store: Path, **env: str) -> Path:
    """A run that ends well; its directory."""
    done = cli(*arguments, store=store, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    return run_directory(done.stdout)


def run_directory(output: str) -> Path:
    prefix = "run directory: "
    return Path(next(ln.removeprefix(prefix) for ln in output.splitlines() if prefix in ln))


def recorded(store: Path) -> list[Run]:
    """The runs of a store as another process sees them, the newest first."""
    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    experiment = client.get_experiment_by_name("mnist_sweep")
    return list(client.search_runs([experiment.experiment_id])) if experiment else []
