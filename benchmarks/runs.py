"""What a run costs beside its training: start-up and memory."""

import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Row, call, medians

# A small process between, because the peak of a child counts what it was forked from.
PEAK = (
    "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=2); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
)


def startup(folder: Path, *, quick: bool) -> Iterator[Row]:
    def to_first_step() -> float:
        started = time.time()
        call("trainer.max_epochs=1", "data.train_size=640", f"store={folder}")
        return first_steps(folder)[""] - started

    turns = {
        "--help": lambda: call("--help")[0],
        "a config error": lambda: call("model=nosuch", f"store={folder}", exit_code=2)[0],
        "a run, to its first step": to_first_step,
    }
    for what, seconds in medians(turns, 1 if quick else 5).items():
        yield Row(f"start-up: {what}", "s", seconds, bar=5.0 if "run" in what else 1.5)


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


def memory(folder: Path, *, quick: bool) -> Iterator[Row]:
    size = ["data.train_size=640"] if quick else []
    gib = peak_gib("mnist_sweep", f"store={folder}", "trainer.max_epochs=1", *size)
    yield Row("memory: peak RSS of a run, simple", "GiB", gib, bar=1.2)


def peak_gib(*module: str) -> float:
    _, peak = call(sys.executable, "-m", *module, program=("-c", PEAK))
    unit = 1 if platform.system() == "Darwin" else 1024  # bytes
    return int(peak) * unit / 2**30
