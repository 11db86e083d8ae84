"""Other frameworks on the same work; in a virtual environment of their own, never a dependency."""

import sys
import venv
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from omegaconf import OmegaConf

import mnist_sweep
from benchmarks.measure import Row, call, medians
from benchmarks.sweeps import open_study
from benchmarks.training import BATCH_SIZE, small, trainer
from mnist_sweep.tracking.run import prepare

MODEL = "simple"
PACKAGES = ("lightning", "hydra-joblib-launcher", "ray[tune]")
MAX_EPOCHS = 4  # of a trial of the search
# Not by -m: what is imported is pickled by name, for the processes of joblib and Ray.
PEER = ("-c", "from mnist_sweep.benchmark.their_side import main; main()")


def peers(folder: Path, *, quick: bool) -> Iterator[Row]:
    their = partial(call, program=PEER, python=python_with(folder / "venv", *PACKAGES))
    overrides = small(MODEL, quick=quick)

    def lightning() -> float:
        return float(their("lightning", *overrides)[1].splitlines()[-1])

    turns = {"ours": trainer(overrides, folder / "ours"), "peer": lightning}
    speed = medians(turns, 1 if quick else 5)
    what = f"training {MODEL}, batch {BATCH_SIZE}, against Lightning"
    yield Row(what, "images/s", speed["ours"], speed["peer"], 2.4, "at least")

    # A search as the users of each would write it, on the embedded images and two jobs; all tracked.
    n, n_images = (2, 100) if quick else (30, 4000)
    images = [f"model={MODEL}", "data=mnist5k", f"data.train_size={n_images}"]
    rates = "tag(log,interval(1e-4,1e-1))"
    space = ["data.batch_size=32,64", f"optimizer.lr={rates}", f"trainer.max_epochs={MAX_EPOCHS}"]
    where = [f"sweep.n_trials={n}", "sweep.n_jobs=2", f"store={folder}", "sweep.name=s"]
    ours_s, _ = call("-m", "search=tpe", *images, *space, *where)
    ours_best = open_study(folder).best_value

    store = folder / "stock"
    uri = f"sqlite:///{store}.db"
    prepare(uri, str(store), "stock")  # two first contacts at once would spoil the file
    command = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.direction=maximize"]
    command += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_jobs=2"]
    command += [f"hydra.sweeper.n_trials={n}", f"hydra.sweep.dir={store}", f"tracking_uri={uri}"]
    command += [f"n_images={n_images}", "batch_size=32,64", f"lr={rates}"]
    stock_s, _ = their("stock", *command, f"max_epochs={MAX_EPOCHS}")
    stock_best = OmegaConf.load(store / "optimization_results.yaml").best_value

    ray_s, output = their("ray", str(folder), str(n), str(MAX_EPOCHS), str(n_images))
    for name, seconds, best, bar in (
        ("hydra-optuna-sweeper + joblib + autolog", stock_s, stock_best, 0.5),
        ("Ray Tune with ASHA", ray_s, float(output.splitlines()[-1]), 0.6),
    ):
        what = f"search of {n} trials, 2 jobs, against {name}"
        yield Row(what, "s", ours_s, seconds, bar)
        yield Row(f"{what}: best on validation", "%", 100 * ours_best, 100 * best)


def python_with(folder: Path, *packages: str) -> str:
    """The interpreter of a new environment that has these packages, and sees ours."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    (site,) = folder.glob("lib/python*/site-packages")
    ours = [p for p in sys.path if p.endswith("site-packages")]
    (site / "ours.pth").write_text("\n".join([*ours, str(Path(mnist_sweep.__file__).parents[1])]))
    call("install", "--quiet", *packages, program=("-m", "pip"), python=python)
    return python
