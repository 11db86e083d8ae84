"""Hydra's own suites for launchers and sweepers, run with ours."""

import pytest
from hydra.core.plugins import Plugins
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)

Plugins.instance()  # registers their configurations, which the suites restore after each test
BATCHES = ["hydra/sweeper=basic", "hydra.sweeper.max_batch_size=2"]


@pytest.mark.parametrize(("launcher_name", "overrides"), [("mnist_sweep", [])])
class TestLauncher(LauncherTestSuite):
    pass


@pytest.mark.parametrize(("launcher_name", "overrides"), [("mnist_sweep", BATCHES)])
class TestLauncherWithBatches(BatchedSweeperTestSuite):
    pass


@pytest.mark.parametrize(
    ("task_launcher_cfg", "extra_flags"),
    [
        ({}, ["-m", "hydra/launcher=mnist_sweep"]),
        ({}, ["-m", "hydra/sweeper=mnist_sweep", "hydra/launcher=mnist_sweep"]),
        ({}, ["-m", "hydra/sweeper=mnist_sweep", "hydra/launcher=basic"]),
    ],
    ids=["launcher", "sweeper and launcher", "sweeper"],
)
class TestApplication(IntegrationTestSuite):
    pass
