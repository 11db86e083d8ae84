"""Run commands in forks of one process that has imported the application.

`python -m tests.helpers.commands` reads a JSON list [folder, arguments] from each line of its input. It
runs `python -m mnist_sweep ARGUMENTS` in the folder, and answers with a JSON list of exit code, standard
output and standard error. A command costs what composing its configuration costs.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, CompletedProcess

LIMIT_S = 100  # a command that waits is killed, and its test fails


class Commands:
    """The process, as the tests see it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, arguments: Sequence[str], folder: Path) -> CompletedProcess[str]:
        """Run `python -m mnist_sweep ARGUMENTS` in a folder."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([str(folder), list(arguments)]), file=self._process.stdin, flush=True)
        code, stdout, stderr = json.loads(self._process.stdout.readline())
        return CompletedProcess(arguments, code, stdout, stderr)


@contextmanager
def started() -> Iterator[Commands]:
    from tests.helpers import cli

    with cli.start(module=__name__, stdin=PIPE, stdout=PIPE) as process:
        yield Commands(process)


def _serve() -> None:
    import mnist_sweep.app  # noqa: F401  # the forks share it

    for line in sys.stdin:
        folder, arguments = json.loads(line)
        with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
            child = os.fork()
            if not child:
                os.dup2(stdout.fileno(), 1)
                os.dup2(stderr.fileno(), 2)
                os._exit(_run(folder, arguments))
            _, status = os.waitpid(child, 0)
            outputs = [_content(stdout), _content(stderr)]
        print(json.dumps([os.waitstatus_to_exitcode(status), *outputs]), flush=True)


def _run(folder: str, arguments: Sequence[str]) -> int:
    """Do what a new interpreter does, and return the exit code."""
    signal.alarm(LIMIT_S)
    os.chdir(folder)
    sys.argv[1:] = arguments
    code: object = 0
    try:
        runpy.run_module("mnist_sweep", run_name="__main__", alter_sys=True)
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else 1


def _content(file: "tempfile._TemporaryFileWrapper[str]") -> str:
    file.seek(0)
    return file.read()


if __name__ == "__main__":
    _serve()
