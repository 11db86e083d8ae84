"""Other frameworks on the same work; in a virtual environment of their own, never a dependency."""

import json
import statistics
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

from omegaconf import OmegaConf

import mnist_sweep
from mnist_sweep.benchmark.measure import FULL, Row, Sizes, call, medians
from mnist_sweep.benchmark.sweeps import EMBEDDED, open_study
from mnist_sweep.benchmark.training import BATCH_SIZE, build, trainer, write_idx
from mnist_sweep.tracking import prepare

MODEL = "simple"
PACKAGES = ("lightning", "hydra-joblib-launcher", "ray[tune]")
MAX_EPOCHS = 4  # of a trial of the search
STOCK = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_jobs=2", "hydra.sweeper.direction=maximize"]
STOCK += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


def peers(sizes: Sizes, folder: Path) -> Iterator[Row]:
    python = python_with(folder / "venv", *PACKAGES)
    yield from training(sizes, folder / "training", python)
    yield from uneven(sizes, folder / "uneven", python)
    yield from search(sizes, folder / "search", python)


def training(sizes: Sizes, folder: Path, python: str) -> Iterator[Row]:
    n_images = sizes.images[MODEL]
    command = [python, *peer("lightning_peer"), MODEL, str(n_images), str(folder / "data")]

    def lightning() -> float:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(done.stdout.splitlines()[-1])

    overrides = [f"model={MODEL}", f"data.train_size={n_images}", "data.val_size=500"]
    speed = medians({"ours": trainer(overrides, folder / "ours"), "peer": lightning}, sizes.turns)
    what = f"training {MODEL}, batch {BATCH_SIZE}, against Lightning"
    yield Row(what, "images/s", speed["ours"], speed["peer"], 2.4, "at least")


def uneven(sizes: Sizes, folder: Path, python: str) -> Iterator[Row]:
    """The same trials of 1 to 4 epochs on two jobs, by our engine and by Hydra's own plugins."""
    n_trials = 4 * sizes.uneven_seeds
    seeds = ",".join(map(str, range(sizes.uneven_seeds)))
    trials = ["-m", f"seed={seeds}", "trainer.max_epochs=1,2,3,4", *EMBEDDED]
    trials += [f"data.train_size={sizes.uneven_images}"]
    stock = [*STOCK, "hydra/sweeper/sampler=grid", f"hydra.sweeper.n_trials={n_trials}"]

    def ours(store: Path) -> float:
        return call(*trials, "sweep.n_jobs=2", f"store={store}", "sweep.name=ours")

    def theirs(store: Path) -> float:
        return call(*trials, *stock, f"store={store}", "sweep.name=stock", python=python)

    seconds = by_turns(sizes, folder, ours=ours, peer=theirs)
    what = f"{n_trials} uneven trials, 2 jobs, against hydra-optuna-sweeper + joblib"
    yield Row(what, "s", seconds["ours"], seconds["peer"], bar=0.75)


def search(sizes: Sizes, folder: Path, python: str) -> Iterator[Row]:
    """As the users of each would write it, on the embedded images and two jobs; all tracked."""
    n, n_images = sizes.searched
    images = [*EMBEDDED, f"data.train_size={n_images}"]
    _, data, _ = build(images)
    write_idx(data, folder / "MNIST" / "raw")
    batch_sizes, rates = "32,64", "tag(log,interval(1e-4,1e-1))"
    best: dict[str, list[float]] = {"ours": [], "stock": [], "ray": []}

    def ours(store: Path) -> float:
        space = [f"data.batch_size={batch_sizes}", f"optimizer.lr={rates}"]
        size = [f"trainer.max_epochs={MAX_EPOCHS}", f"sweep.n_trials={n}", "sweep.n_jobs=2"]
        where = [f"store={store}", "sweep.name=search"]
        seconds = call("-m", "search=tpe", *images, *space, *size, *where)
        best["ours"].append(open_study(store, "search").best_value)
        return seconds

    def stock(store: Path) -> float:
        uri = f"sqlite:///{store}.db"
        prepare(uri, str(store), "stock")  # two first contacts at once would spoil the file
        space = [f"batch_size={batch_sizes}", f"lr={rates}", f"max_epochs={MAX_EPOCHS}"]
        where = [f"data={folder}", f"tracking_uri={uri}", f"hydra.sweep.dir={store}"]
        command = [*STOCK, f"hydra.sweeper.n_trials={n}", *space, *where]
        seconds = call(*command, program=peer("stock_peer"), python=python)
        found = OmegaConf.load(store / "optimization_results.yaml")
        best["stock"].append(found.best_value)
        return seconds

    def ray(store: Path) -> float:
        store.mkdir()
        arguments = [str(folder), str(store), str(n), str(MAX_EPOCHS)]
        seconds = call(*arguments, program=peer("ray_peer"), python=python)
        best["ray"].append(json.loads((store / "best.json").read_text()))
        return seconds

    seconds = by_turns(sizes, folder, ours=ours, stock=stock, ray=ray)
    reached = {name: 100 * statistics.median(values) for name, values in best.items()}
    names = {"stock": "hydra-optuna-sweeper + joblib + autolog", "ray": "Ray Tune with ASHA"}
    for key, bar in {"stock": 0.5, "ray": 0.6}.items():
        what = f"search of {n} trials, 2 jobs, against {names[key]}"
        yield Row(what, "s", seconds["ours"], seconds[key], bar)
        yield Row(f"{what}: best on validation", "%", reached["ours"], reached[key])


def by_turns(sizes: Sizes, folder: Path, **turns: Callable[[Path], float]) -> dict[str, float]:
    """Medians of two turns of each, in rotation, every one in a store of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    rounds = [
        {name: turn(folder / f"{name}-{i}") for name, turn in turns.items()}
        for i in range(2 if sizes is FULL else 1)
    ]
    return {name: statistics.median(r[name] for r in rounds) for name in turns}


def peer(name: str) -> tuple[str, str]:
    return "-m", f"mnist_sweep.benchmark.{name}"


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
