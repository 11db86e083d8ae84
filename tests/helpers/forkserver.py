"""Start a command in a forked process whose libraries are already imported.

Importing torch and MLflow takes a new interpreter four seconds, and the tests start hundreds. So
each pytest process starts one server, which imports the libraries and then forks a child for
every command. The child has the command's arguments, variables, working directory and files, and
ends as `python -m` does.

The server imports no module of this project, starts no thread and runs no torch operation: all
that a command does at import happens in the child, as in a new interpreter.
"""

import atexit
import ctypes
import functools
import gc
import importlib
import json
import multiprocessing.process
import os
import random
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from types import ModuleType
from typing import Any

# What the project's modules import, and what these libraries import later, at their first use.
LIBRARIES = """
    alembic.command cloudpickle fastapi git hydra._internal.config_loader_impl jinja2
    matplotlib.backends.backend_agg matplotlib.figure mlflow.artifacts mlflow.data.numpy_dataset
    mlflow.pyfunc mlflow.pytorch mlflow.store.db.utils mlflow.store.tracking.sqlalchemy_store
    mlxtend.data networkx opentelemetry.sdk.metrics optuna.importance optuna.storages._rdb.storage
    optuna.visualization.matplotlib pandas PIL.Image plotly.graph_objects psutil requests
    rich.console rich.live scipy.stats sqlalchemy.dialects.sqlite torch._dynamo
    torch.export.pt2_archive torchvision.transforms.v2 uvicorn
"""
# A command whose other variables differ from the server's runs in a new interpreter, because
# libraries read variables when they are imported.
READ_LATE = ("MNIST_SWEEP_", "HYDRA_", "PATH", "PYTEST_")
PR_SET_CHILD_SUBREAPER = 36  # of prctl(2)


class Popen(subprocess.Popen[str]):
    """`subprocess.Popen` that forks `python -m MODULE ...` from the server where it can."""

    def _execute_child(self, args: Any, *others: Any) -> None:
        names = "executable preexec_fn close_fds pass_fds cwd env startupinfo creationflags shell"
        names += " p2cread p2cwrite c2pread c2pwrite errread errwrite restore_signals"
        names += " gid gids uid umask start_new_session process_group"
        given = dict(zip(names.split(), others, strict=True))
        command = [os.fspath(each) for each in args]
        if command[:2] != [sys.executable, "-m"] or not _server().serves(given["env"]):
            super()._execute_child(args, *others)  # type: ignore[misc]
            return
        ends = [given["p2cread"], given["c2pwrite"], given["errwrite"]]
        files = [end if end != -1 else number for number, end in enumerate(ends)]
        self.pid = _server().fork(
            command, os.fspath(given["cwd"]), given["env"], files, given["start_new_session"]
        )
        self._child_created = True
        pipes = [given[n] for n in names.split() if n.startswith(("p2c", "c2p", "err"))]
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


class Server:
    """The server's process, as seen from the process that starts it."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = dict(env)
        # A child's parent is an intermediate process that ends at once. Then this process becomes
        # the parent, and can wait for the child.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(other.fileno())],
                env=self.env,
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )

    def serves(self, env: Mapping[str, str]) -> bool:
        """Whether a child is as good as a new interpreter for a command with these variables."""
        changed = {name for name, _ in env.items() ^ self.env.items()}
        return all(name.startswith(READ_LATE) for name in changed)

    def fork(
        self,
        command: list[str],
        cwd: str,
        env: Mapping[str, str],
        files: list[int],
        new_session: bool,
    ) -> int:
        """Start `command` with `files` as stdin, stdout and stderr, and return its process id."""
        message = json.dumps([command, cwd, dict(env), new_session])
        socket.send_fds(self.socket, [message.encode()], files)
        return int(self.socket.recv(20))


@functools.cache
def _server() -> Server:
    from tests.helpers.cli import environment

    return Server(environment())


def serve(server: socket.socket) -> list[str]:
    """Fork a child for every request. Return, in the child only, the command to run."""
    import mnist_sweep.tracking  # noqa: F401  # sets variables that MLflow reads at its import

    for name in LIBRARIES.split():
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "mnist_sweep"]:
        del sys.modules[name]
    with suppress(AttributeError):  # MLflow reads the names of the installed packages once
        importlib.import_module("mlflow.utils.requirements_utils")._init_modules_to_packages_map()
    gc.collect()
    gc.freeze()  # the children share these objects
    while True:
        message, files, *_ = socket.recv_fds(server, 2**20, 3)
        if not message:
            os._exit(0)
        is_ready, says_ready = os.pipe()
        intermediate = os.fork()
        if not intermediate:
            intermediate = os.getpid()
            if os.fork():
                os._exit(0)
            while os.getppid() == intermediate:
                time.sleep(0.0005)
            server.close()
            _become(files, *json.loads(message))
            os.write(says_ready, str(os.getpid()).encode())
            for descriptor in (is_ready, says_ready):
                os.close(descriptor)
            return sys.orig_argv
        os.waitpid(intermediate, 0)
        server.send(os.read(is_ready, 20))
        for descriptor in (is_ready, says_ready, *files):
            os.close(descriptor)


def _end(codes: list[Any]) -> None:
    """End a child that exits with a number, without the 0.4 seconds that deleting torch takes."""
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
        for code in codes:
            if isinstance(code, int):
                os._exit(code & 0xFF)


def _become(
    files: list[int], command: list[str], cwd: str, env: dict[str, str], new_session: bool
) -> None:
    """Give this process what `subprocess.Popen` gives a new interpreter."""
    import numpy as np
    import torch

    for number, descriptor in enumerate(files):
        os.dup2(descriptor, number)
        os.close(descriptor)
    if new_session:
        os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.orig_argv = command
    sys.path[0] = cwd
    multiprocessing.process.ORIGINAL_DIR = cwd  # type: ignore[attr-defined]
    random.seed()
    np.random.seed()
    torch.default_generator.seed()


if __name__ == "__main__":
    exit_codes: list[Any] = []
    atexit.register(_end, exit_codes)  # before the libraries, so that it runs after theirs
    _, _, module, *arguments = serve(socket.socket(fileno=int(sys.argv[1])))
    sys.argv = ["-m", *arguments]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        exit_codes.append(0)
    except SystemExit as error:
        exit_codes.append(error.code or 0)
        raise
