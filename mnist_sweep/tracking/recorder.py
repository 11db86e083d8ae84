"""Records runs in MLflow, also while its server is away."""

import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.tracking.context.registry import resolve_tags
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import nn

from mnist_sweep.common import processes
from mnist_sweep.common.secrets import mask_url
from mnist_sweep.tracking import provenance
from mnist_sweep.tracking.buffer import IMAGE, Buffer, Record
from mnist_sweep.tracking.run import (
    RECORD,
    UNSENT,
    closing,
    cut_params,
    now_ms,
    save_model,
    store_uri,
    write_inputs,
)
from mnist_sweep.tracking.sender import Sender
from mnist_sweep.tracking.tracker import Tracker

log = logging.getLogger(__name__)

INTERRUPTED_S = 2.0  # for an interrupted run to send what is left


class RecordedRun(Tracker):
    """Writes a run to disk, from where a thread sends it to MLflow.

    An outage of the store stops nobody, unless `tracking.on_outage` says so. An error of the store, such
    as a refused permission, is raised by a later call.

    Args:
        cfg: the whole configuration; `tracking` and `store` in it say where the run goes.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg, self.settings, self.store = cfg, cfg.tracking, cfg.store
        self.uri = store_uri(cfg.tracking.uri, cfg.store)

    @contextmanager
    def opened(
        self, record: Record, *, may_exist: bool = False, says_what_is_left: bool = True
    ) -> Iterator[None]:
        """Record a run until the block ends; see `closing`.

        Args:
            may_exist: whether the run may be in the store already.
            says_what_is_left: whether to log where the record is if the store is away at the end.
        """
        self.buffer = Buffer.create(record, self.store)
        fails = self.settings.on_outage == "fail"
        self.sender = Sender(self.buffer, self.uri, self.store, may_exist=may_exist, fails=fails)
        self.sender.start()
        try:
            self.flush()
        except BaseException:  # the run has not begun
            self.sender.close(timeout_s=0.0)
            raise
        timeout_s: float | None = 0.0  # after an error or a signal, `end` has waited long enough
        try:
            with closing(self, self.uri):
                yield
            timeout_s = None
        finally:
            if not self.sender.close(timeout_s) and says_what_is_left:
                log.warning(
                    "WARNING: the record of this run waits in %s; the next run or sweep with the same "
                    "store and tracking.uri sends it",
                    self.buffer.folder,
                )

    @property
    def run_id(self) -> str | None:
        """The run's id in MLflow; None if the store was not reached yet."""
        run = self.sender.run_in_store
        return None if run is None else run.run_id

    @property
    def is_away(self) -> bool:
        """Whether the store is away."""
        return self.sender.is_away

    def flush(self) -> bool:
        """Wait until everything is sent. Returns False if the store is away.

        Raises:
            Exception: the store refuses the record, or is away and `tracking.on_outage` is fail.
        """
        self.sender.wait(through_outage=self.settings.on_outage == "wait")
        return not self.is_away

    def _add(
        self, method: str, write: Callable[[Path], object] | None = None, **arguments: Any
    ) -> None:
        self.buffer.add(method, write, **arguments)
        self.sender.note_added()
        if self.is_away or self.sender.error is not None:
            self.flush()

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._add("log_metrics", metrics=dict(metrics), step=step, time_ms=now_ms())

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._add("set_tags", tags=dict(tags))

    def log_params(self, params: Mapping[str, str]) -> None:
        self._add("log_params", params=cut_params(params))

    def log_dataset(self, name: str, sha256: str, source: str, sizes: Mapping[str, int]) -> None:
        self._add("log_dataset", name=name, sha256=sha256, source=source, sizes=dict(sizes))

    def log_artifacts(self, write: Callable[[Path], None]) -> None:
        self._add("log_folder", write)

    def log_image(self, key: str, image: NDArray[np.uint8]) -> None:
        self._add("log_image", lambda folder: np.save(folder / IMAGE, image), key=key)

    def log_model(
        self,
        model: nn.Module,
        example: NDArray[np.float32],
        classes: Sequence[str],
        write: Callable[[Path], None],
    ) -> None:
        self._add(
            "log_saved_model",
            partial(save_model, model=model, example=example, classes=classes, write=write),
        )

    def reopen(self) -> None:
        """Mark the run RUNNING again."""
        self._add("reopen")

    def end(self, status: str) -> None:
        """Close the run, and wait until everything is sent or the store is away."""
        self.buffer.add("end", status=status, time_ms=now_ms())
        self.sender.note_added()
        if status == "KILLED":
            self.sender.wait(INTERRUPTED_S)
        else:
            self.flush()


class MlflowTracker(RecordedRun):
    """Records the run of a configuration.

    Args:
        cfg: the whole configuration.
        run_name: the run's name in MLflow.
        tags: tags of the run that are known before it opens.
        params: parameters of the run: the settings of `cfg`, and what reads better.
        directory: the run's output directory.
    """

    def __init__(
        self,
        cfg: DictConfig,
        *,
        run_name: str,
        tags: Mapping[str, str],
        params: Mapping[str, str],
        directory: Path,
    ) -> None:
        super().__init__(cfg)
        self.run_name, self.tags, self.params = run_name, tags, params
        self.directory = directory

    @contextmanager
    def run(self, tags: Mapping[str, str]) -> Iterator[None]:
        """Record the code, the packages, the configuration, and what the block records."""
        tags = {**provenance.code_tags(), **self.tags, **tags}
        record = _new_record(self, self.run_name, tags, self.directory)
        with self.opened(record):
            self.log_params(self.params)
            self.log_artifacts(partial(write_inputs, cfg=self.cfg))
            yield


@contextmanager
def sweep_run(
    cfg: DictConfig, sweep: str, *, tags: Mapping[str, str], directory: Path
) -> Iterator[RecordedRun]:
    """Open the summary run of a sweep. A sweep that resumes reopens its run."""
    run = RecordedRun(cfg)
    identity = {"kind": "sweep", "sweep": sweep}
    record = _new_record(run, f"sweep {sweep}", {**identity, **tags}, directory)
    record = replace(record, identity=identity)
    with run.opened(record, may_exist=True, says_what_is_left=False):
        run.set_tags(record.tags)
        run.reopen()
        yield run


def _new_record(run: RecordedRun, name: str, tags: Mapping[str, str], directory: Path) -> Record:
    key = uuid.uuid4().hex
    return Record(
        key=key,
        uri=mask_url(run.uri),
        experiment=run.settings.experiment,
        name=name,
        tags=resolve_tags({**processes.process_identity(), **tags, RECORD: key}),
        identity={RECORD: key},
        start_ms=now_ms(),
        folder=str(directory / UNSENT / key),
    )
