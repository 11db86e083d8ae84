"""Other frameworks on the same work; each in a virtual environment of its own, never a dependency."""

import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import mnist_sweep
from mnist_sweep.benchmark.measure import Row, Sizes, medians
from mnist_sweep.benchmark.training import BATCH_SIZE, trainer

MODEL, BAR = "simple", 2.4


def peers(sizes: Sizes, folder: Path) -> Iterator[Row]:
    n_images = sizes.images[MODEL]
    python = python_with(folder / "venv", "lightning")
    module = ["-m", "mnist_sweep.benchmark.lightning_peer"]
    command = [python, *module, MODEL, str(n_images), str(folder / "data")]

    def lightning() -> float:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(done.stdout.splitlines()[-1])

    overrides = [f"model={MODEL}", f"data.train_size={n_images}", "data.val_size=500"]
    speed = medians({"ours": trainer(overrides, folder / "ours"), "peer": lightning}, sizes.turns)
    what = f"training {MODEL}, batch {BATCH_SIZE}, against Lightning"
    yield Row(what, "images/s", speed["ours"], speed["peer"], BAR, "at least")


def python_with(folder: Path, *packages: str) -> str:
    """The interpreter of a new environment that has these packages, and sees ours."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    (site,) = folder.glob("lib/python*/site-packages")
    ours = [p for p in sys.path if p.endswith("site-packages")]
    (site / "ours.pth").write_text("\n".join([*ours, str(Path(mnist_sweep.__file__).parents[1])]))
    install = [python, "-m", "pip", "install", "--quiet", *packages]
    subprocess.run(install, check=True, stdout=subprocess.DEVNULL)
    return python
