"""Start sweeps of apps/sleeper.py or of the real task, watch them and read their studies."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import optuna
import psutil
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.pool import NullPool

from mnist_sweep.sweep.overrides import to_text
from tests.helpers import cli

DONE = (TrialState.COMPLETE, TrialState.PRUNED)


def start(
    *arguments: str,
    store: Path,
    module: str = "tests.helpers.apps.sleeper",
    prefix: Sequence[str] = (),
    fresh: bool = False,
    **env: str,
) -> subprocess.Popen[str]:
    """Start a sweep in a process group of its own. It appends its output to `store`/out.txt.

    Args:
        prefix: a program that runs it, with its arguments.
        fresh: start a new interpreter, not a fork that has imported the libraries.
        env: variables to set.
    """
    store.mkdir(exist_ok=True)
    with open(store / "out.txt", "a") as output:
        return cli.start(
            *("-m", f"store={to_text(str(store))}", *arguments),
            module=module,
            prefix=prefix,
            fresh=fresh,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def run(
    *arguments: str,
    store: Path,
    module: str = "tests.helpers.apps.sleeper",
    timeout: float = 240,
    **env: str,
) -> tuple[int, str]:
    """Run a sweep to its end. Return its exit code and its output."""
    before = len(output(store))
    process = start(*arguments, store=store, module=module, **env)
    try:
        code = process.wait(timeout)
    finally:
        end(process)
    return code, output(store)[before:]


def output(store: Path) -> str:
    path = store / "out.txt"
    return path.read_text() if path.exists() else ""


def trials(store: Path, name: str) -> list[FrozenTrial]:
    """Return the trials of a study as another process sees them; none while there is no study."""
    if not is_complete(store / "optuna.db"):
        return []
    arguments = {"connect_args": {"timeout": 60}, "poolclass": NullPool}
    try:
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{store}/optuna.db".replace("{", "{{").replace("}", "}}"),  # a template
            engine_kwargs=arguments,
            skip_table_creation=True,
            skip_compatibility_check=True,
        )
        return optuna.load_study(study_name=name, storage=storage).trials
    except KeyError:  # no such study yet
        return []


def is_complete(path: Path) -> bool:
    """Whether the database has all its tables. A second process must not open it before."""
    if not path.exists():
        return False
    uri = f"file:{path}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=60)) as database:
        try:
            row = database.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.OperationalError:
            return False
    return row is not None


def states(trials: list[FrozenTrial]) -> Counter[str]:
    """Count the trials of each state, or of each reason why another trial replaced them."""
    return Counter(t.user_attrs.get("replaced", t.state.name) for t in trials)


def n_done(trials: list[FrozenTrial]) -> int:
    """Count the trials that are COMPLETE or PRUNED."""
    return sum(t.state in DONE for t in trials)


def wait_for(condition: Callable[[], object], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true within {seconds:g} s"
        time.sleep(0.1)


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the worker processes of a driver that is alive: the children of its fork server."""
    try:
        children = psutil.Process(process.pid).children()
        servers = [c for c in children if "multiprocessing.forkserver" in " ".join(c.cmdline())]
        return [worker for server in servers for worker in server.children()]
    except psutil.NoSuchProcess:
        return []


def group_alive(process: subprocess.Popen[str]) -> list[int]:
    """Return the ids of the processes of the sweep's process group that have not ended."""
    alive = []
    for p in psutil.process_iter(["pid", "status"]):
        try:
            is_of_sweep = os.getpgid(p.pid) == process.pid
        except ProcessLookupError:
            continue
        if is_of_sweep and p.info["status"] != psutil.STATUS_ZOMBIE:
            alive.append(p.pid)
    return alive


def end(process: subprocess.Popen[str]) -> None:
    """Kill the process group of a sweep."""
    if group_alive(process):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
