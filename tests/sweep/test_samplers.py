"""Samplers that run code from a shared database."""

import pickle
from pathlib import Path
from typing import Any

import optuna
import pytest
from omegaconf import DictConfig
from optuna.distributions import FloatDistribution
from optuna.samplers import CmaEsSampler, QMCSampler

from mnist_sweep.common.errors import UserError
from mnist_sweep.sweep import samplers
from tests.helpers.cli import cli
from tests.helpers.hostile import Marked
from tests.helpers.settings import sweep_settings

CMAES = {"_target_": "optuna.samplers.CmaEsSampler", "n_startup_trials": 1}
WRAPPED = {
    "_target_": "optuna.samplers.PartialFixedSampler",
    "fixed_params": {},
    "base_sampler": CMAES,
}


class Mine(CmaEsSampler):
    """A sampler of the user's own."""


def settings(**changes: Any) -> DictConfig:
    return sweep_settings(**{"sampler": CMAES, "storage": "sqlite:////shared/optuna.db", **changes})


@pytest.mark.parametrize(
    "sampler",
    [CMAES, WRAPPED, {"_target_": f"{__name__}.Mine"}],
    ids=["itself", "inner", "derived"],
)
def test_sampler_that_unpickles_needs_its_own_storage_or_trust(
    sampler: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mnist_sweep.common.build.TRUSTED_BY_USER", (f"{__name__}.*",))
    with pytest.raises(UserError, match=r"sweep\.storage=.*set sweep\.trust=true"):
        samplers.check_trust(settings(sampler=sampler))
    samplers.check_trust(settings(sampler=sampler, trust=True))
    samplers.check_trust(settings(sampler=sampler, storage=None))


def test_other_samplers_need_no_trust() -> None:
    for name in ("TPESampler", "RandomSampler", "GPSampler", "NSGAIISampler", "NSGAIIISampler"):
        samplers.check_trust(settings(sampler={"_target_": f"optuna.samplers.{name}"}))
    samplers.check_trust(settings(sampler=None))


def test_scrambled_qmc_takes_all_points_from_one_sequence() -> None:
    """Seeded anew for each trial, it would be a random search."""
    node = {"_target_": "optuna.samplers.QMCSampler", "scramble": True}
    distributions = {name: FloatDistribution(0, 1) for name in "abc"}
    drawn = []
    for sampler in (
        samplers.make_sampler(settings(sampler=node)),
        QMCSampler(seed=0, scramble=True),
    ):
        study = optuna.create_study(sampler=sampler)
        for _ in range(9):
            study.tell(study.ask(distributions), 0.0)
        drawn.append([t.params for t in study.trials[1:]])  # the first is drawn at random
    assert drawn[0] == drawn[1]


def test_pickle_in_a_shared_database_is_not_loaded(fresh: Path, tmp_path: Path) -> None:
    url, mark = f"sqlite:///{tmp_path}/shared.db", tmp_path / "ran"
    study = optuna.create_study(storage=url, study_name="s", direction="maximize")
    distribution = FloatDistribution(1e-4, 1e-1, log=True)
    study.add_trial(
        optuna.create_trial(
            value=0.5,
            params={"optimizer.lr": 0.01},
            distributions={"optimizer.lr": distribution},
            system_attrs={"cma:optimizer:0": pickle.dumps(Marked(mark)).hex()},
        )
    )
    arguments = ("-m", "search=cmaes", "sweep.name=s", f"sweep.storage={url}", "data=mnist5k")
    done = cli(*arguments, store=fresh)
    assert done.returncode == 2
    assert "CmaEsSampler keeps pickles in the database" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not mark.exists()
    assert not fresh.exists()
