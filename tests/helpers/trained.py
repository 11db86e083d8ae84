"""A model trained on the embedded images, for the tests of what uses one: once a test process."""

import functools
import tempfile
from pathlib import Path

from tests.helpers.cli import cli

RECIPE = ("data=mnist5k", "model=simple", "data.augment=affine", "data.batch_size=128")
RECIPE += ("scheduler=onecycle", "optimizer.lr=3e-3", "trainer.max_epochs=6")


@functools.cache
def store() -> Path:
    """With one finished run."""
    folder = Path(tempfile.mkdtemp(prefix="mnist_sweep"))
    done = cli(*RECIPE, store=folder)
    assert done.returncode == 0, done.stderr
    return folder
