"""What a run costs beside its training: start-up, memory, the record of it."""

import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from mnist_sweep.benchmark.measure import Row, Sizes, call, compose, medians
from mnist_sweep.reporting import REPORTER, NullReporter

# A small process between, because the peak of a child counts what it was forked from.
PEAK = (
    "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=2); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
)


def startup(sizes: Sizes, folder: Path) -> Iterator[Row]:
    turns = {
        "--help": lambda: call("--help"),
        "a config error": lambda: call("model=nosuch", f"store={folder}", exit_code=2),
    }
    for what, seconds in medians(turns, sizes.turns).items():
        yield Row(f"start-up: {what}", "s", seconds, bar=1.5)
    cold_s = medians({"run": partial(to_first_step_s, folder / "runs")}, sizes.turns)["run"]
    yield Row("start-up: a run, to its first step", "s", cold_s, bar=5.0)


def to_first_step_s(store: Path) -> float:
    """Seconds from the start of a process to the first step of its run."""
    started = time.time()
    call("trainer.max_epochs=1", "data.train_size=640", f"store={store}")
    return first_steps(store)[""] - started


def first_steps(store: Path) -> dict[str, float]:
    """Trial, "" for a run that is none -> time of its first step.

    That is when its first epoch was recorded, less the length of the epoch.
    """
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    found = {}
    for run in reversed(client.search_runs([e.experiment_id for e in client.search_experiments()])):
        if run.data.tags.get("kind") != "sweep":
            epoch = client.get_metric_history(run.info.run_id, "epoch_s")[0]
            found[run.data.tags.get("trial", "")] = epoch.timestamp / 1000 - epoch.value
    return found


def memory(sizes: Sizes, folder: Path) -> Iterator[Row]:
    run = ["mnist_sweep", f"store={folder}", "trainer.max_epochs=1"]
    if sizes.run_images is not None:
        run.append(f"data.train_size={sizes.run_images}")
    yield Row("memory: peak RSS of a run, simple", "GiB", peak_gib(*run), bar=1.2)


def peak_gib(*module: str) -> float:
    command = [sys.executable, "-c", PEAK, sys.executable, "-m", *module]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    unit = 1 if platform.system() == "Darwin" else 1024  # bytes
    return peak * unit / 2**30


def tracking(sizes: Sizes, folder: Path) -> Iterator[Row]:
    """Training itself is left out on both sides: it varies by more than its record costs."""
    fixed = [f"store={folder}", "trainer.max_epochs=3", "trainer.early_stopping.patience=null"]

    fixed.append(f"data.train_size={sizes.tracked_images}")

    def turn(choice: str) -> float:
        return outside_fit_s([*fixed, f"tracking={choice}"], folder / choice)

    turns = {"on": lambda: turn("mlflow"), "off": lambda: turn("none")}
    seconds = medians(turns, sizes.turns)
    added_s = seconds["on"] - seconds["off"]
    yield Row("tracking: seconds it adds to a run, simple, 3 epochs", "s", added_s, bar=1.5)


def outside_fit_s(overrides: Sequence[str], directory: Path) -> float:
    """Seconds of a whole run in this process, less those of its training and validation."""
    from mnist_sweep.train import train

    cfg = compose(overrides, with_hydra=True)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = str(directory)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    reporter = Summary()
    token = REPORTER.set(reporter)
    started = time.monotonic()
    try:
        train(cfg)
        return time.monotonic() - started - reporter.fit_s
    finally:
        REPORTER.reset(token)


class Summary(NullReporter):
    fit_s = 0.0

    def finish(self, summary: Mapping[str, float]) -> None:
        self.fit_s = summary["fit_s"]
