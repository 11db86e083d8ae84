"""Folders and files that only their owner and its group can read.

They may hold secrets: configurations, uncommitted code, data. What exists keeps its mode, and the umask of
the process may take more rights away.
"""

import os
from pathlib import Path


def make_folder(path: Path) -> None:
    """Create a folder, and the folders above it that do not exist."""
    for folder in reversed([p for p in (path, *path.parents) if not p.exists()]):
        folder.mkdir(mode=0o770, exist_ok=True)


def make_database(path: Path) -> None:
    """Create the empty file of an SQLite database. Its journal gets the same mode from SQLite."""
    make_folder(path.parent)
    if not path.exists():
        path.touch(mode=0o660)


def replace(unfinished: Path, path: Path) -> None:
    """Rename a file so that after a power cut `path` has its old content or the new one, as a whole."""
    with unfinished.open("r+b") as file:
        os.fsync(file.fileno())
    unfinished.replace(path)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
