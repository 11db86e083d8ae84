"""Start a command in a forked process whose libraries are already imported.

Importing torch and MLflow takes a new interpreter four seconds, and the tests start hundreds. So
each pytest process starts one server, which imports the libraries and then forks a child for
every command. The child has the command's arguments, variables, working directory and files, and
ends as a new interpreter does.

The server imports no module of this project, starts no thread and runs no torch operation: all
that a command does at import happens in the child, as in a new interpreter.

A sweep starts workers. Before its command runs, the child forks a server of its own, which then
forks what multiprocessing would start in a new interpreter.
"""

import atexit
import ctypes
import fcntl
import functools
import gc
import importlib
import json
import multiprocessing.process
import multiprocessing.util
import os
import random
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
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
NEW_SESSION = -1
PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 15, 36  # of prctl(2)


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
        self.pid = request(
            _server().socket,
            command=command,
            cwd=os.fspath(given["cwd"]),
            env=given["env"],
            files={number: end if end != -1 else number for number, end in enumerate(ends)},
            group=NEW_SESSION if given["start_new_session"] else os.getpgid(0),
        )
        self._child_created = True
        pipes = [given[n] for n in names.split() if n.startswith(("p2c", "c2p", "err"))]
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


class Server:
    """The server's process, as seen from the process that starts it."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = dict(env)
        adopt_grandchildren()
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


@functools.cache
def _server() -> Server:
    from tests.helpers.cli import environment

    return Server(environment())


def request(
    server: socket.socket,
    *,
    command: Sequence[str],
    cwd: str,
    env: Mapping[str, str],
    files: Mapping[int, int],
    group: int,
) -> int:
    """Start a command and return its process id.

    Args:
        server: connection to the server that forks.
        command: the interpreter and its arguments: `-m MODULE ...` or `-c CODE ...`.
        files: {file descriptor of the command: open file descriptor of this process}.
        group: process group of the command, or NEW_SESSION.
    """
    message = json.dumps([command, cwd, dict(env), list(files), group])
    socket.send_fds(server, [message.encode()], list(files.values()))
    return int(server.recv(20))


def serve(server: socket.socket) -> list[str]:
    """Fork a child for every request. Return, in the child only, the command to run.

    The child's parent is an intermediate process that ends at once. So the process that sends the
    requests becomes its parent, if it calls `adopt_grandchildren` first.
    """
    while True:
        message, descriptors, *_ = socket.recv_fds(server, 2**20, 10)
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
            os.close(is_ready)
            says_ready = _move(says_ready)
            command, cwd, env, numbers, group = json.loads(message)
            _become(command, cwd, env, dict(zip(numbers, descriptors, strict=True)), group)
            os.write(says_ready, str(os.getpid()).encode())
            os.close(says_ready)
            return list(command)
        os.waitpid(intermediate, 0)
        server.send(os.read(is_ready, 20))
        for descriptor in (is_ready, says_ready, *descriptors):
            os.close(descriptor)


def _become(
    command: list[str], cwd: str, env: dict[str, str], files: dict[int, int], group: int
) -> None:
    """Give this process what a new interpreter is given. Arguments are those of `request`."""
    import numpy as np
    import torch

    moved = {number: _move(descriptor) for number, descriptor in files.items()}
    for number, descriptor in moved.items():
        os.dup2(descriptor, number)
        os.close(descriptor)
    if group == NEW_SESSION:
        os.setsid()
    else:
        os.setpgid(0, group)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.orig_argv = command
    sys.path[0] = cwd if command[1] == "-m" else ""
    multiprocessing.process.ORIGINAL_DIR = cwd  # type: ignore[attr-defined]
    random.seed()
    np.random.seed()
    torch.default_generator.seed()


def _move(descriptor: int) -> int:
    """Give an open file a number that no command asks for, and return it."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 200)
    os.close(descriptor)
    return moved


def fork_workers() -> list[str] | None:
    """Let multiprocessing fork workers from a copy of this process.

    Return, in a worker only, the command to run.
    """
    group = os.getpgid(0)
    server, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if not os.fork():
        server.close()
        os.setpgid(0, 0)  # a signal to the group of the sweep spares its server
        return serve(other)
    other.close()
    adopt_grandchildren()
    start = multiprocessing.util.spawnv_passfds

    def spawnv_passfds(path: bytes, args: Sequence[Any], passfds: Sequence[int]) -> int:
        command = [os.fsdecode(each) for each in args]
        del command[1 : command.index("-c")]  # the flags of this interpreter
        if "spawn_main" not in command[2]:
            return start(path, args, passfds)
        files = {number: number for number in (0, 1, 2, *passfds)}
        return request(
            server, command=command, cwd=os.getcwd(), env=os.environ, files=files, group=group
        )

    multiprocessing.util.spawnv_passfds = spawnv_passfds
    return None


def adopt_grandchildren() -> None:
    """Make this process the parent of its descendants whose own parents end."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _import_libraries() -> None:
    import mnist_sweep.tracking  # noqa: F401  # sets variables that MLflow reads at its import

    for name in LIBRARIES.split():
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "mnist_sweep"]:
        del sys.modules[name]
    with suppress(AttributeError):  # MLflow reads the names of the installed packages once
        importlib.import_module("mlflow.utils.requirements_utils")._init_modules_to_packages_map()
    gc.collect()
    gc.freeze()  # the children share these objects


def _run(command: list[str]) -> None:
    """Do what the interpreter does with its arguments."""
    _, option, program, *arguments = command
    sys.argv = [option, *arguments]
    main = sys.modules["__main__"] = ModuleType("__main__")
    if option == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        # the name by which the tests find workers; a command line cannot be changed
        ctypes.CDLL(None).prctl(PR_SET_NAME, b"spawn_main", 0, 0, 0)
        exec(program, main.__dict__)


def _end(codes: list[Any]) -> None:
    """End a child that exits with a number, without the 0.4 seconds that deleting torch takes."""
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
        for code in codes:
            if isinstance(code, int):
                os._exit(code & 0xFF)


if __name__ == "__main__":
    exit_codes: list[Any] = []
    atexit.register(_end, exit_codes)  # before the libraries, so that it runs after theirs
    _import_libraries()
    command = serve(socket.socket(fileno=int(sys.argv[1])))
    if "-m" in command[3:]:
        command = fork_workers() or command
    try:
        _run(command)
        exit_codes.append(0)
    except SystemExit as error:
        exit_codes.append(error.code or 0)
        raise
