"""Samplers and pruners built from their configuration."""

import inspect
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from omegaconf import DictConfig
from optuna import Study
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler, CmaEsSampler, TPESampler
from optuna.trial import FrozenTrial

from mnist_sweep.common.build import bind, build, targets
from mnist_sweep.common.errors import UserError
from mnist_sweep.common.secrets import mask_url
from mnist_sweep.sweep.optuna_internals import all_trials
from mnist_sweep.sweep.study import DUPLICATE, REPLACED

# Samplers that unpickle what they find in the study. Of optuna 5.0.0's samplers and pruners it is only
# CMA-ES, which keeps its optimizer in the attributes of trials. The others keep numbers and names.
PICKLING = (CmaEsSampler,)


class SeededSampler:
    """Makes a fresh sampler for every trial, seeded by the trial's place in the study.

    With one seed, all workers would sample the same points. With a seed for each worker, the points
    would depend on which worker is faster. Replaced trials do not count, so that an interrupted study
    continues with the points that it would have had.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make, self._seed = make, seed
        self._sampler = make(seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        earlier = [t for t in all_trials(study) if t.number < trial.number]
        place = sum(t.user_attrs.get(REPLACED, DUPLICATE) == DUPLICATE for t in earlier)
        seed = int(np.random.SeedSequence((self._seed, place)).generate_state(1)[0])
        self._sampler = self._make(seed)
        self._sampler.before_trial(study, trial)

    def __getattr__(self, name: str) -> Any:
        if name == "_sampler":  # of a copy under construction
            raise AttributeError(name)
        return getattr(self._sampler, name)


def check(settings: DictConfig) -> None:
    """Raise UserError if the sampler runs code from a database that others may write to."""
    if settings.sampler is None or settings.storage is None or settings.trust:
        return
    for target in targets(settings.sampler):
        if isinstance(target, type) and issubclass(target, PICKLING):
            raise UserError(
                f"sweep.storage={mask_url(settings.storage)}: {target.__name__} keeps pickles "
                "in the database, and a pickle can run any code in every worker; set sweep.trust=true "
                "if only people you trust can write to it, or remove sweep.storage"
            )


def make_sampler(settings: DictConfig) -> BaseSampler:
    if settings.sampler is None:
        return cast(BaseSampler, SeededSampler(lambda seed: TPESampler(seed=seed), settings.seed))
    bound = bind(settings.sampler)
    takes_seed = "seed" in inspect.signature(bound.func).parameters

    def make(seed: int) -> BaseSampler:
        sampler: BaseSampler = bound(seed=seed) if takes_seed else bound()
        return sampler

    return cast(BaseSampler, SeededSampler(make, settings.seed))


def make_pruner(settings: DictConfig) -> BasePruner:
    if settings.pruner is None or settings.objectives:
        return NopPruner()
    pruner: BasePruner = build(settings.pruner)
    return pruner
