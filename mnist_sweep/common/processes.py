"""Identity of a process: tells a living process from one that ended, across reboots and reused ids."""

import os
import socket
from functools import cache
from pathlib import Path

import psutil


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
