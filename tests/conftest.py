"""Fixtures and the order of the tests."""

import os
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest

# The tests run side by side, one thread each. Torch reads this when it is imported.
os.environ["OMP_NUM_THREADS"] = "1"

# A shell's & leaves SIGINT ignored, which the commands of the tests would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that have the most slow tests, so that two processes end together."""
    n_slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -n_slow[item.path])
    for item in items:
        if item.get_closest_marker("mnist") and "MNIST_SWEEP_DATA" not in os.environ:
            item.add_marker(pytest.mark.skip(reason="needs MNIST_SWEEP_DATA"))


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without a run. A process needs two seconds to make its tables."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("tables") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(tmp_path: Path, tables: Path) -> Path:
    """A store whose MLflow database has no run."""
    (tmp_path / "store").mkdir()
    shutil.copy(tables, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A store that does not exist yet."""
    return tmp_path / "fresh"
