"""Sweeps of the task in apps/sleeper.py and of the real one, started, watched and looked into."""

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
            *("-m", f"store={store}", *arguments),
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
    """A sweep to its end: exit code and output."""
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
    """As another process sees them; none while there is no study."""
    if not is_made(store / "optuna.db"):
        return []
    arguments = {"connect_args": {"timeout": 60}, "poolclass": NullPool}
    try:
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{store}/optuna.db",
            engine_kwargs=arguments,
            skip_table_creation=True,
            skip_compatibility_check=True,
        )
        return optuna.load_study(study_name=name, storage=storage).trials
    except KeyError:  # no such study yet
        return []


def is_made(path: Path) -> bool:
    """Whether the database is whole: a second process at one that is being made would spoil it."""
    if not path.exists():
        return False
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=60)) as made:
        try:
            return made.execute("SELECT version_num FROM alembic_version").fetchone() is not None
        except sqlite3.OperationalError:
            return False


def states(found: list[FrozenTrial]) -> Counter[str]:
    return Counter(t.user_attrs.get("replaced", t.state.name) for t in found)


def n_done(found: list[FrozenTrial]) -> int:
    return sum(t.state in DONE for t in found)


def wait_for(condition: Callable[[], object], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the worker processes of a driver that is alive."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        return [c for c in children if "spawn_main" in " ".join([c.name(), *c.cmdline()])]
    except psutil.NoSuchProcess:
        return []


def group_alive(process: subprocess.Popen[str]) -> list[int]:
    """Processes of the sweep's process group that are left."""
    left = []
    for p in psutil.process_iter(["pid", "status"]):
        try:
            mine = os.getpgid(p.pid) == process.pid
        except ProcessLookupError:
            continue
        if mine and p.info["status"] != psutil.STATUS_ZOMBIE:
            left.append(p.pid)
    return left


def end(process: subprocess.Popen[str]) -> None:
    if group_alive(process):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
