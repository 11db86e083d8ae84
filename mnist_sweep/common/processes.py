"""Identity of a process: tells a living process from one that ended, across reboots and reused ids."""

import os
import socket
from functools import cache
from pathlib import Path

import psutil


@cache
def boot_id() -> str:
    """An identifier that changes with every boot, after which process ids start again."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(int(psutil.boot_time()))


def process_identity(pid: int | None = None) -> dict[str, str]:
    """Host, boot, process id and start time (seconds since the boot): unique across hosts and time.

    Args:
        pid: of a process on this host; None: of this process.
    """
    pid = os.getpid() if pid is None else pid
    try:
        started = _start_time(psutil.Process(pid))
    except psutil.NoSuchProcess:  # it ended just now
        started = ""
    return {
        "host": socket.gethostname(),
        "boot_id": boot_id(),
        "pid": str(pid),
        "process_started": started,
    }


def _start_time(process: psutil.Process) -> str:
    """The start time by which psutil identifies a process. Setting the clock moves create_time()."""
    return str(process._ident[1])  # type: ignore[attr-defined]


def is_here(identity: dict[str, str]) -> bool:
    """Whether a process runs, or ran, on this host."""
    return identity.get("host") == socket.gethostname()


def is_dead(identity: dict[str, str]) -> bool:
    """Whether a process has ended for certain. Of a process on another host nothing is known: False."""
    if not is_here(identity):
        return False
    if identity.get("boot_id") != boot_id():
        return True
    try:
        process = psutil.Process(int(identity["pid"]))
        reused = _start_time(process) != identity["process_started"]
        return reused or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
