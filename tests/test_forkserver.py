"""A command that the tests fork is as good as one in a new interpreter."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.cli import start

STATE = """
import json, multiprocessing.process, os, random, signal, sys, threading
import numpy as np, torch
import mnist_sweep
main = sys.modules["__main__"]
print(json.dumps({
    "arguments": [sys.argv, sys.orig_argv],
    "path": sys.path,
    "main": [__name__, __file__, main.__spec__.name, main.__dict__ is globals()],
    "directory": [os.getcwd(), multiprocessing.process.ORIGINAL_DIR],
    "variables": dict(os.environ),
    "files": sorted(os.listdir("/proc/self/fd")),
    "signals": [str(signal.getsignal(each)) for each in signal.valid_signals()],
    "streams": [[s.line_buffering, s.encoding, s.isatty()] for s in (sys.stdout, sys.stderr)],
    "parent": os.getppid(),
    "threads": [threading.active_count(), torch.get_num_threads()],
    "project": sorted(name for name in sys.modules if name.startswith("mnist_sweep")),
    "leads": [os.getpgid(0) == os.getpid(), os.getsid(0) == os.getpid()],
}))
"""
WORKER = """
import json, multiprocessing, os, sys
def tell(parent):
    own = os.getpid()
    print(json.dumps({
        "arguments": sys.argv,
        "path": sys.path,
        "directory": os.getcwd(),
        "variables": dict(os.environ),
        "parent": [os.getppid() == parent, os.getpgid(own) == os.getpgid(parent)],
        "main": [__name__, sys.modules["__main__"].__name__],
        "project": sorted(name for name in sys.modules if name.startswith("mnist_sweep")),
        "files": len(os.listdir("/proc/self/fd")),
    }))
    sys.exit(int(os.environ["HYDRA_X"]))
if __name__ == "__main__":
    os.environ["HYDRA_X"] = "3"
    process = multiprocessing.get_context("spawn").Process(target=tell, args=[os.getpid()])
    process.start()
    process.join()
    sys.exit(process.exitcode)
"""
ENDS = {
    "nothing": "pass",
    "number": "import sys; sys.exit(7)",
    "text": "import sys; sys.exit('why')",
    "error": "print('text'); 1 / 0",
    "interrupt": "raise KeyboardInterrupt",
    "kill": "import os; os.kill(os.getpid(), 9)",
    "sleeps": "import time; print('ready', flush=True); time.sleep(60)",
    "atexit": "import atexit; atexit.register(print, 'end'); print('text')",
    "thread": "import threading, time as t\n"
    "threading.Thread(target=lambda: (t.sleep(0.2), print('thread'))).start()",
}


def ended(code: str, folder: Path, *, fresh: bool, signum: int | None = None) -> list[Any]:
    """Run `code` as a module; return its exit code, its output and the last line of its errors."""
    (folder / "probe.py").write_text(code)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    pipes |= {"stdin": subprocess.DEVNULL, "start_new_session": True}
    process = start(
        "a b", "", module="probe", fresh=fresh, cwd=folder, env={"HYDRA_X": "1"}, **pipes
    )
    if signum is not None:
        assert process.stdout is not None
        process.stdout.readline()
        os.killpg(process.pid, signum)
    stdout, stderr = process.communicate(timeout=60)
    return [process.returncode, stdout, stderr.splitlines()[-1:]]


def test_child_finds_what_a_new_interpreter_finds(tmp_path: Path) -> None:
    forked, new = (json.loads(ended(STATE, tmp_path, fresh=f)[1]) for f in (False, True))
    assert forked == new


def test_worker_finds_what_a_new_interpreter_finds(tmp_path: Path) -> None:
    forked, new = (ended(WORKER, tmp_path, fresh=fresh) for fresh in (False, True))
    assert forked == new
    assert forked[0] == 3


@pytest.mark.parametrize("name", ENDS)
def test_child_ends_as_a_new_interpreter_ends(name: str, tmp_path: Path) -> None:
    signum = signal.SIGINT if name == "sleeps" else None
    forked, new = (ended(ENDS[name], tmp_path, fresh=f, signum=signum) for f in (False, True))
    assert forked == new


@pytest.mark.parametrize("call", ["random.random()", "numpy.random.random()", "torch.rand(1)"])
def test_children_draw_different_random_numbers(call: str, tmp_path: Path) -> None:
    code = f"import random, numpy, torch; print({call})"
    assert ended(code, tmp_path, fresh=False) != ended(code, tmp_path, fresh=False)


def test_variable_that_libraries_read_at_import_starts_a_new_interpreter(tmp_path: Path) -> None:
    code = "import sys; print('torch' in sys.modules)"
    (tmp_path / "probe.py").write_text(code)
    for threads, forked in (("1", True), ("2", False)):
        options: dict[str, Any] = {"cwd": tmp_path, "stdout": subprocess.PIPE}
        process = start(module="probe", env={"OMP_NUM_THREADS": threads}, **options)
        assert process.communicate()[0] == f"{forked}\n"


def test_variable_that_a_library_sets_starts_no_new_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # torch does this
    assert ended("import sys; print('torch' in sys.modules)", tmp_path, fresh=False)[1] == "True\n"
