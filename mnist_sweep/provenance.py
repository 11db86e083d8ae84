"""What a run was made of: code, packages, machine, process."""

import os
import platform
import socket
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

PACKAGES = ("torch", "torchvision", "hydra-core", "omegaconf", "mlflow", "optuna", "numpy")


@cache
def git_state() -> tuple[str, str]:
    """(commit, uncommitted diff) of the code's checkout; ("none", "") outside of one.

    The diff ends with the names of files that git does not know yet. Read once a process: what is
    imported does not change when the files do.
    """

    here = Path(__file__).parent
    ours = [folder for folder in (".", "../conf") if (here / folder).is_dir()]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        done = subprocess.run(command, capture_output=True, check=True)
        return done.stdout.decode(errors="replace")  # a changed file may be in any encoding

    try:
        new = git("ls-files", "--others", "--exclude-standard", "--full-name", "--", *ours)
        diff = git("diff", "HEAD") + "".join(f"new file: {name}\n" for name in new.splitlines())
        return git("rev-parse", "HEAD").strip(), diff
    except (OSError, subprocess.CalledProcessError):
        return "none", ""


@cache
def package_versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


@cache
def boot_id() -> str:
    """Changes at every start of the machine, so that a process id is not taken for an older one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(int(psutil.boot_time()))


def process_identity() -> dict[str, str]:
    """Names this process for good: host, boot, pid and start time (seconds since the boot)."""
    return {
        "host": socket.gethostname(),
        "boot_id": boot_id(),
        "pid": str(os.getpid()),
        "process_started": _started(psutil.Process()),
    }


def _started(process: psutil.Process) -> str:
    """As psutil tells processes apart: create_time() would move when the clock is set."""
    return str(process._ident[1])  # type: ignore[attr-defined]


def is_here(identity: dict[str, str]) -> bool:
    return identity.get("host") == socket.gethostname()


def is_dead(identity: dict[str, str]) -> bool:
    """Whether the process of `identity` surely ended; of another host nothing is known: False."""
    if not is_here(identity):
        return False
    if identity.get("boot_id") != boot_id():
        return True
    try:
        process = psutil.Process(int(identity["pid"]))
        # the second as earlier versions wrote it, whose processes may still run
        started = _started(process), f"{process.create_time():.2f}"
        other = identity["process_started"] not in started
        return other or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
