"""Fixtures and the order of the tests."""

import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from tests.helpers.cli import HAS_MNIST

torch.set_num_threads(1)  # the tests run side by side


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    # the long files first: two processes end together
    items.sort(key=lambda item: -slow[item.path])
    for item in items:
        if item.get_closest_marker("mnist") and not HAS_MNIST:
            item.add_marker(pytest.mark.skip(reason="needs MNIST_SWEEP_DATA"))


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without a run: making the tables takes a process two seconds."""
    path = tmp_path_factory.mktemp("tables") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(tmp_path: Path, tables: Path) -> Path:
    (tmp_path / "store").mkdir()
    shutil.copy(tables, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A store that is not there yet."""
    return tmp_path / "fresh"
