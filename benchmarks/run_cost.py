"""Start-up time and memory of a single run."""

import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Row, alternating_medians, run_command

# Run a command from a small process: the peak of a child includes the memory that it was forked with.
PRINT_PEAK = (
    "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=2); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
)


def startup(folder: Path, *, quick: bool) -> Iterator[Row]:
    data = ["data=mnist5k"] if quick else []

    def seconds_to_first_step() -> float:
        started = time.time()
        run_command(*data, "trainer.max_epochs=1", "data.train_size=640", f"store={folder}")
        return first_step_times(folder)[""] - started

    measure = {
        "--help": lambda: run_command("--help")[0],
        "a config error": lambda: run_command("model=nosuch", f"store={folder}", exit_code=2)[0],
        "a run, to its first step": seconds_to_first_step,
    }
    for name, seconds in alternating_medians(measure, 1 if quick else 5).items():
        yield Row(f"start-up: {name}", "s", seconds, target=5.0 if "run" in name else 1.5)


def first_step_times(store: Path) -> dict[str, float]:
    """Return {trial number, or "" for a single run: Unix time of its first step}.

    A step starts when the first epoch was recorded, minus the duration of the epoch.
    """
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    times = {}
    for run in reversed(client.search_runs([e.experiment_id for e in client.search_experiments()])):
        if run.data.tags.get("kind") != "sweep":
            epoch = client.get_metric_history(run.info.run_id, "epoch_s")[0]
            times[run.data.tags.get("trial", "")] = epoch.timestamp / 1000 - epoch.value
    return times


def memory(folder: Path, *, quick: bool) -> Iterator[Row]:
    size = ["data=mnist5k", "data.train_size=640"] if quick else []
    gib = peak_gib(f"store={folder}", "trainer.max_epochs=1", *size)
    yield Row("memory: peak RSS of a run, simple", "GiB", gib, target=1.2)


def peak_gib(*arguments: str) -> float:
    """Run `python -m mnist_sweep` and return its peak memory."""
    command = (sys.executable, "-m", "mnist_sweep", *arguments)
    _, peak = run_command(*command, program=("-c", PRINT_PEAK))
    unit = 1 if platform.system() == "Darwin" else 1024  # bytes
    return int(peak) * unit / 2**30
