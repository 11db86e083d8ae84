"""A model trained on the embedded images, for the tests of what uses one."""

import functools
import tempfile
from pathlib import Path

from tests.helpers.cli import cli, recorded

RECIPE = ("data=mnist5k", "model=simple", "data.augment=affine", "data.batch_size=128")
RECIPE += ("scheduler=onecycle", "optimizer.lr=3e-3", "trainer.max_epochs=6")


@functools.cache
def store() -> Path:
    """Train the model once in each test process, and return its store."""
    folder = Path(tempfile.mkdtemp(prefix="mnist_sweep"))
    done = cli(*RECIPE, store=folder)
    assert done.returncode == 0, done.stderr
    return folder


@functools.cache
def run_id() -> str:
    """Return the id of the MLflow run that trained the model."""
    return next(r.info.run_id for r in recorded(store()) if "best/val/accuracy" in r.data.metrics)


@functools.cache
def directory() -> Path:
    """Return the directory of the run that trained the model."""
    (best,) = store().rglob("best.pt")
    return best.parent
