"""Optuna's own suites for storages and samplers, run with ours."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)
from optuna.testing.pytest_storages import StorageTestCase

from mnist_sweep.sweep.samplers import make_sampler
from mnist_sweep.sweep.study import open_storage
from tests.helpers.settings import sweep_settings


class TestStorage(StorageTestCase):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[BaseStorage]:
        opened = open_storage(f"sqlite:///{tmp_path}/optuna.db", 60, create=True)
        yield opened
        opened.engine.dispose()


def fresh(name: str, **arguments: object) -> Callable[[], BaseSampler]:
    target = {"_target_": f"optuna.samplers.{name}", **arguments}
    return lambda: make_sampler(sweep_settings(sampler=target))


class TestTPE(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return fresh("TPESampler", n_startup_trials=0, multivariate=True)


class TestNSGAII(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return fresh("NSGAIISampler")


class TestCmaEs(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return fresh("CmaEsSampler", n_startup_trials=0)
