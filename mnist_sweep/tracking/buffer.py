"""The records of runs on disk, until an MLflow store has them.

A record is a file in `<store>/unsent/`, and a folder in the output directory of its run. The folder has
an entry for each call that was not sent yet, in order. A record is left over when its process has ended,
or has closed it because the store was away. Any later run on the same host sends it.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from mnist_sweep.common import processes
from mnist_sweep.common.errors import one_line
from mnist_sweep.common.files import make_folder
from mnist_sweep.common.secrets import mask_url
from mnist_sweep.tracking.retry import RETRY_FOR_S, is_outage
from mnist_sweep.tracking.run import MODEL, UNSENT, MlflowRun, open_run, prepare

log = logging.getLogger(__name__)

IMAGE = "image.npy"
PLAIN = ("log_metrics", "set_tags", "log_params", "log_dataset", "reopen", "end")  # without files


@dataclass(frozen=True)
class Record:
    """Which run a record is of.

    Attributes:
        key: names the record, also in a tag of the run.
        uri: the store's URI, without its password.
        tags: the run's first tags, with the identity of its process.
        identity: those of the tags that no other run has.
        start_ms: when the run started.
        folder: where its entries are.
        is_closed: whether its process adds no more entries.
    """

    key: str
    uri: str
    experiment: str
    name: str
    tags: Mapping[str, str]
    identity: Mapping[str, str]
    start_ms: int
    folder: str
    is_closed: bool = False

    @property
    def is_left_over(self) -> bool:
        """Whether nobody but another process on this host can send it now."""
        here = processes.is_here(dict(self.tags))
        return here and (self.is_closed or processes.is_dead(dict(self.tags)))

    def open(self, uri: str, store: str, *, may_exist: bool) -> MlflowRun:
        """Find or create the run in the store.

        Args:
            may_exist: whether the run may be in the store already.
        """
        waiting = [buffer.record.key for buffer in unsent(store) if buffer.entries()]
        experiment_id = prepare(uri, store, self.experiment, kept=waiting)
        return open_run(
            uri,
            experiment_id,
            name=self.name,
            tags=self.tags,
            identity=self.identity if may_exist else None,
            start_ms=self.start_ms,
            patience_s=0,
        )


class Buffer:
    """The entries of a record. One process adds, one thread at a time sends."""

    def __init__(self, record: Record, store: str) -> None:
        self.record, self.folder = record, Path(record.folder)
        self.file = Path(store).resolve() / UNSENT / f"{record.key}.json"
        self._n_added = 0

    @classmethod
    def create(cls, record: Record, store: str) -> "Buffer":
        """Make the record of a new run."""
        buffer = cls(record, store)
        make_folder(buffer.folder)
        make_folder(buffer.file.parent)
        buffer._save()
        return buffer

    @classmethod
    def load(cls, file: Path) -> "Buffer":
        """Read the record of another process."""
        record = Record(**json.loads(file.read_text()))
        return cls(record, str(file.parent.parent))

    def _save(self) -> None:
        _write(self.file, asdict(self.record))

    def add(
        self, method: str, write: Callable[[Path], object] | None = None, **arguments: Any
    ) -> None:
        """Add a call of `method` of MlflowRun. `write` puts its files into a folder."""
        entry = self.folder / f"{self._n_added:06d}.json"
        if write is not None:
            make_folder(entry.with_suffix(""))
            write(entry.with_suffix(""))
        _write(entry, {"method": method, "arguments": arguments})
        self._n_added += 1

    def entries(self) -> list[Path]:
        """The entries that were not sent yet, in order."""
        return sorted(self.folder.glob("*.json"))

    def close(self) -> bool:
        """End the record: delete it if everything was sent, else leave it to others.

        Returns:
            Whether everything was sent.
        """
        if self.entries():
            self.record = replace(self.record, is_closed=True)
            self._save()
            return False
        self.delete()
        return True

    def delete(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # another record of the same directory is left over
            self.folder.parent.rmdir()
        self.file.unlink(missing_ok=True)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(content))
    unfinished.replace(path)


def send(run: MlflowRun, entry: Path) -> None:
    """Make the call of an entry, and delete the entry."""
    content, files = json.loads(entry.read_text()), entry.with_suffix("")
    method, arguments = content["method"], content["arguments"]
    if method == "log_folder":
        run.log_folder(files)
    elif method == "log_image":
        run.log_image(image=np.load(files / IMAGE, allow_pickle=False), **arguments)
    elif method == "log_saved_model":
        run.log_saved_model(files / MODEL)
    elif method in PLAIN:
        getattr(run, method)(**arguments)
    else:
        raise ValueError(f"{entry}: no call of a run is named {method}")
    entry.unlink()
    shutil.rmtree(files, ignore_errors=True)


def unsent(store: str) -> list[Buffer]:
    """Return all records in a store, also those of runs that have not ended."""
    found = []
    for file in (Path(store).resolve() / UNSENT).glob("*.json"):
        try:
            found.append(Buffer.load(file))
        except FileNotFoundError:  # another process has just sent it
            continue
        except (ValueError, TypeError) as error:
            log.warning("WARNING: %s is no record of a run: %s", file, one_line(error))
    return found


def left_over(uri: str, store: str, identity: Mapping[str, str] | None = None) -> Iterator[Buffer]:
    """Yield the records for `uri` that are left over in a store, the oldest first.

    Args:
        identity: only those of the run with this identity; None: all.
    """
    for buffer in sorted(unsent(store), key=lambda buffer: buffer.record.start_ms):
        record = buffer.record
        wanted = record.uri == mask_url(uri) and identity in (None, record.identity)
        if wanted and record.is_left_over:
            yield buffer


def send_left_over(uri: str, store: str, identity: Mapping[str, str] | None = None) -> None:
    """Send the records that are left over; see `left_over`.

    While another process is at it: leave them to it, or with `identity` wait until it is done.

    Raises:
        filelock.Timeout: the other process takes too long.
    """
    if next(left_over(uri, store, identity), None) is None:
        return
    patience_s = 0 if identity is None else RETRY_FOR_S
    lock = filelock.FileLock(Path(store).resolve() / UNSENT / ".lock", timeout=patience_s)
    try:
        with lock:
            for buffer in left_over(uri, store, identity):
                _send_all(buffer, uri, store)
    except filelock.Timeout:
        if identity is not None:
            raise


def _send_all(buffer: Buffer, uri: str, store: str) -> None:
    record = buffer.record
    try:
        run = record.open(uri, store, may_exist=True)
        for entry in buffer.entries():
            send(run, entry)
        # a process can be killed after its run ended, and before it closed the record
        is_killed = not record.is_closed and run.status() == "RUNNING"
        if is_killed:
            run.end("KILLED")
    except Exception as error:
        if is_outage(error):
            raise
        log.warning(
            "WARNING: %s refuses the record of run %s: %s; to give the record up, delete %s",
            mask_url(uri),
            record.name,
            one_line(error),
            buffer.file,
        )
        return
    buffer.delete()
    if is_killed:
        log.info("marked run %s KILLED: its process is dead", record.name)
    else:
        log.info("sent the record of run %s", record.name)
