"""Samplers and pruners from their configuration."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from omegaconf import DictConfig
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from mnist_sweep import config
from mnist_sweep.sweep.storage import DUPLICATE, REPLACED, trials


class SeededSampler(BaseSampler):
    """A fresh sampler for every trial, seeded by the trial's place in the study.

    One seed for all workers would make them sample the same points; a seed a worker would make
    the points depend on who is faster. Trials that were replaced take no place, so that a study
    that was interrupted goes on with the very points it would have had.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make, self._seed = make, seed
        self._sampler = make(seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        earlier = [t for t in trials(study) if t.number < trial.number]
        place = sum(t.user_attrs.get(REPLACED, DUPLICATE) == DUPLICATE for t in earlier)
        seed = int(np.random.SeedSequence((self._seed, place)).generate_state(1)[0])
        self._sampler = self._make(seed)
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        self._sampler.after_trial(study, trial, state, values)


def make_sampler(settings: DictConfig) -> SeededSampler:
    if settings.sampler is None:
        return SeededSampler(lambda seed: TPESampler(seed=seed), settings.seed)
    bound = config.bind(settings.sampler)
    takes_seed = "seed" in inspect.signature(bound.func).parameters

    def make(seed: int) -> BaseSampler:
        sampler: BaseSampler = bound(seed=seed) if takes_seed else bound()
        return sampler

    return SeededSampler(make, settings.seed)


def make_pruner(settings: DictConfig) -> BasePruner:
    if settings.pruner is None or settings.objectives:
        return NopPruner()
    pruner: BasePruner = config.build(settings.pruner)
    return pruner
