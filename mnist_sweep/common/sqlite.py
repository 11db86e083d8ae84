"""Checks of an SQLite file before a library opens it."""

import tempfile
from pathlib import Path

from mnist_sweep.common.errors import UserError

HEADER = b"SQLite format 3\0"


def check_file(path: Path, setting: str) -> None:
    """Raise UserError if a file is no SQLite database, or cannot become one. Creates nothing.

    Libraries wait for a minute for a lock that they cannot create.

    Args:
        setting: "key=value" that names the file, for the message.
    """
    try:
        if not path.exists():
            folder = next(parent for parent in path.absolute().parents if parent.exists())
            with tempfile.TemporaryFile(dir=folder):
                return
        if not path.is_file():
            raise UserError(f"{setting}: {path} is not a file")
        with path.open("r+b") as file:
            header = file.read(len(HEADER))
    except OSError as error:
        raise UserError(f"{setting}: cannot write {path} ({error.strerror})") from error
    if header not in (b"", HEADER):
        raise UserError(f"{setting}: {path} is not an SQLite database; choose another file")
