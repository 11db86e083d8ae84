"""Writes the report of a sweep."""

import logging
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from mnist_sweep.report import page
from mnist_sweep.report.study import load_study
from mnist_sweep.sweep.study import storage_url
from mnist_sweep.tracking.run import store_uri

log = logging.getLogger(__name__)


def run(cfg: DictConfig, _overrides: Sequence[str]) -> None:
    """Write the report of `cfg.sweep` into the sweep's directory under `cfg.store`.

    The study records a directory too, but anybody who can write to its database chooses that one.
    """
    study = load_study(storage_url(cfg.storage, cfg.store), cfg.sweep)
    uri = store_uri(cfg.tracking.uri, cfg.store) if cfg.tracking.enabled else None
    folder = Path(cfg.store).resolve() / "outputs" / study.study_name / "report"
    path = page.write(folder, study, uri=uri, experiment=cfg.tracking.experiment)
    log.info("report of sweep %s: %s", study.study_name, path)
