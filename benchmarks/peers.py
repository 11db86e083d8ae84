"""Other frameworks on the same work. They are installed in a virtual environment of their own."""

import sys
import venv
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from omegaconf import OmegaConf

import mnist_sweep
from benchmarks.measure import Row, alternating_medians, run_command
from benchmarks.sweep_cost import open_study
from benchmarks.workload import BATCH_SIZE, our_trainer, overrides_of
from mnist_sweep.tracking.run import prepare

MODEL = "simple"
PACKAGES = ("lightning", "hydra-joblib-launcher", "ray[tune]")
MAX_EPOCHS = 4  # of a trial of the search
# Not by -m: joblib and Ray pickle the functions by name, which fails for those of __main__.
PEER_PROGRAM = ("-c", "from benchmarks.peer_programs import main; main()")


def peers(folder: Path, *, quick: bool) -> Iterator[Row]:
    python = create_environment(folder / "venv", *PACKAGES)
    run_peer = partial(run_command, program=PEER_PROGRAM, python=python)
    overrides = overrides_of(MODEL, quick=quick)

    def lightning() -> float:
        return float(run_peer("lightning", *overrides)[1].splitlines()[-1])

    measure = {"ours": our_trainer(overrides, folder / "ours"), "peer": lightning}
    speed = alternating_medians(measure, 1 if quick else 5)
    name = f"training {MODEL}, batch {BATCH_SIZE}, against Lightning"
    yield Row(name, "images/s", speed["ours"], speed["peer"], 2.4, "at least")

    # A search written as the users of each framework would: embedded images, two jobs, all tracked.
    n, n_images = (2, 100) if quick else (30, 4000)
    images = [f"model={MODEL}", "data=mnist5k", f"data.train_size={n_images}"]
    rates = "tag(log,interval(1e-4,1e-1))"
    space = ["data.batch_size=32,64", f"optimizer.lr={rates}", f"trainer.max_epochs={MAX_EPOCHS}"]
    settings = [f"sweep.n_trials={n}", "sweep.n_jobs=2", f"store={folder}", "sweep.name=s"]
    ours_s, _ = run_command("-m", "search=tpe", *images, *space, *settings)
    ours_best = open_study(folder).best_value

    store = folder / "stock"
    uri = f"sqlite:///{store}.db"
    prepare(uri, str(store), "stock")  # two processes that create the database would corrupt it
    command = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.direction=maximize"]
    command += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_jobs=2"]
    command += [f"hydra.sweeper.n_trials={n}", f"hydra.sweep.dir={store}", f"tracking_uri={uri}"]
    command += [f"n_images={n_images}", "batch_size=32,64", f"lr={rates}"]
    stock_s, _ = run_peer("stock", *command, f"max_epochs={MAX_EPOCHS}")
    stock_best = OmegaConf.load(store / "optimization_results.yaml").best_value

    ray_s, output = run_peer("ray", str(folder), str(n), str(MAX_EPOCHS), str(n_images))
    ray_best = float(output.splitlines()[-1])
    for peer, seconds, best, target in (
        ("hydra-optuna-sweeper + joblib + autolog", stock_s, stock_best, 0.5),
        ("Ray Tune with ASHA", ray_s, ray_best, 0.6),
    ):
        name = f"search of {n} trials, 2 jobs, against {peer}"
        yield Row(name, "s", ours_s, seconds, target)
        yield Row(f"{name}: best on validation", "%", 100 * ours_best, 100 * best)


def create_environment(folder: Path, *packages: str) -> str:
    """Create a virtual environment with `packages` that also sees ours. Return its interpreter."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    (site,) = folder.glob("lib/python*/site-packages")
    ours = [p for p in sys.path if p.endswith("site-packages")]
    (site / "ours.pth").write_text("\n".join([*ours, str(Path(mnist_sweep.__file__).parents[1])]))
    run_command("install", "--quiet", *packages, program=("-m", "pip"), python=python)
    return python
