"""Run commands in real processes."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import DEVNULL, PIPE
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tests.helpers import forkserver

if TYPE_CHECKING:
    from mlflow.entities import Run

NONE: Mapping[str, str] = MappingProxyType({})
ROOT = Path(__file__).parent.parent.parent
# A copy, because libraries set variables when a test imports them, torch for example.
VARIABLES = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "HYDRA_"))}
# The smallest run that learns, on the embedded images.
SMALL = ["data=mnist5k", "data.train_size=600", "data.val_size=400", "trainer.max_epochs=1"]


def environment(**changes: str) -> dict[str, str]:
    """Return the variables of the tests, without those of MLflow and Hydra, with `changes`."""
    return {**VARIABLES, "OMP_NUM_THREADS": "1", **changes}


def start(
    *arguments: str,
    module: str = "mnist_sweep",
    prefix: Sequence[str] = (),
    fresh: bool = False,
    env: Mapping[str, str] = NONE,
    **options: Any,
) -> subprocess.Popen[str]:
    """Start `python -m MODULE ARGUMENTS` in the repository.

    Args:
        prefix: a program that runs it, with its arguments.
        fresh: start a new interpreter, not a fork that has imported the libraries.
        env: variables to set.
        options: of subprocess.Popen.
    """
    make = subprocess.Popen if fresh else forkserver.Popen
    command = [*prefix, sys.executable, "-m", module, *arguments]
    return make(command, env=environment(**env), text=True, **{"cwd": ROOT, **options})


def run(*arguments: str, timeout: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE ARGUMENTS` to its end. `options` are those of `start`."""
    files = {"stdin": DEVNULL, "stdout": PIPE, "stderr": PIPE}
    with start(*arguments, **{**files, **options}) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def cli(
    *arguments: str, store: Path, fresh: bool = False, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m mnist_sweep store=... ARGUMENTS` and return its exit code and output."""
    return run(f"store={store}", *arguments, fresh=fresh, env=env)


def tool(name: str, *arguments: str, store: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the tool `python -m mnist_sweep NAME store=... ARGUMENTS`."""
    return run(name, f"store={store}", *arguments, env=env)


def succeed(*arguments: str, store: Path, **env: str) -> Path:
    """Run `cli`, check that it succeeds and return the directory of the run."""
    done = cli(*arguments, store=store, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    return run_directory(done.stdout)


def run_directory(output: str) -> Path:
    """Return the directory that a run prints."""
    prefix = "run directory: "
    return Path(next(ln.removeprefix(prefix) for ln in output.splitlines() if prefix in ln))


def recorded(store: Path) -> list["Run"]:
    """Return the runs of a store as another process sees them, the newest first."""
    from mlflow import MlflowClient  # here, because workers of a pool import the test module

    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    experiment = client.get_experiment_by_name("mnist_sweep")
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def free_port() -> int:
    """Return a port of this machine that no server listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
