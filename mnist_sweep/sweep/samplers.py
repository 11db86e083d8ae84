"""Samplers and pruners built from their configuration."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial, TrialState

from mnist_sweep.common.build import bind, targets
from mnist_sweep.common.errors import UserError
from mnist_sweep.common.secrets import mask_url
from mnist_sweep.sweep import optuna_internals
from mnist_sweep.sweep.optuna_internals import placed_trial
from mnist_sweep.sweep.places import Places

SAMPLER, PRUNER = "sampler", "pruner"  # keys of the settings
KINDS: dict[str, type] = {SAMPLER: BaseSampler, PRUNER: BasePruner}
# Samplers that unpickle what they find in the study. Of optuna 5.0.0's samplers and pruners it is only
# CMA-ES, which keeps its optimizer in the attributes of trials. The others keep numbers and names.
PICKLING = (CmaEsSampler,)
GRID = "optuna.samplers.GridSampler"  # what the grid of `Space.grid` is asked for with


class PlacedSampler(BaseSampler):
    """Makes a fresh sampler for every trial, seeded by the trial's place in the study.

    With one seed, all workers would sample the same points. With a seed for each worker, the points
    would depend on which worker is faster. A sampler does not see the trials that were replaced, so
    that an interrupted study continues with the points that it would have had.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make, self._seed, self._places = make, seed, Places()
        self._sampler = make(seed)
        self._study: Study | None = None  # as this trial's sampler sees it

    def _view(self, study: Study, trial: FrozenTrial) -> Study:
        return optuna_internals.placed_study(
            study,
            trial,
            f"seed {self._seed}",
            self._places.arrange,
            sampler=self._sampler,
            pruner=study.pruner,
        )

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._study = self._view(study, trial)
        placed = placed_trial(self._study, trial)
        seed = int(np.random.SeedSequence((self._seed, placed.number)).generate_state(1)[0])
        self._sampler = self._make(seed)
        self._sampler.before_trial(self._study, placed)

    def _seen(self, study: Study, trial: FrozenTrial) -> tuple[Study, FrozenTrial]:
        if self._study is None:
            self._study = self._view(study, trial)
        return self._study, placed_trial(self._study, trial)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(*self._seen(study, trial))

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(*self._seen(study, trial), search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        seen = self._seen(study, trial)
        return self._sampler.sample_independent(*seen, param_name, param_distribution)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        view = self._view(study, trial)
        self._sampler.after_trial(view, placed_trial(view, trial), state, values)


class PlacedPruner(BasePruner):
    """Makes a fresh pruner for every decision. It does not see the trials that were replaced.

    Args:
        seed: of the search. Hyperband derives the brackets from it, and not from the study's name.
    """

    def __init__(self, make: Callable[[], BasePruner], seed: int) -> None:
        self._make, self._seed, self._places = make, seed, Places()
        make()

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        pruner = self._make()
        view = optuna_internals.placed_study(
            study,
            trial,
            f"seed {self._seed}",
            self._places.arrange,
            sampler=study.sampler,
            pruner=pruner,
        )
        return pruner.prune(view, placed_trial(view, trial))


def check_trust(settings: DictConfig) -> None:
    """Raise UserError if the sampler runs code from a database that others may write to."""
    if settings.sampler is None or settings.storage is None or settings.trust:
        return
    for target in targets(settings.sampler):
        if isinstance(target, type) and issubclass(target, PICKLING):
            raise UserError(
                f"{settings.key}.storage={mask_url(settings.storage)}: {target.__name__} keeps pickles "
                f"in the database, and a pickle can run any code in every worker; set {settings.key}."
                f"trust=true if only people you trust can write to it, or remove {settings.key}.storage"
            )


def is_grid(settings: DictConfig) -> bool:
    """Whether the sampler asks for a grid."""
    return settings.sampler is not None and settings.sampler.get("_target_") == GRID


def sampler_class(settings: DictConfig) -> type:
    """Return the class of `settings.sampler`."""
    target = TPESampler if settings.sampler is None else _bind(SAMPLER, settings).func
    return target if isinstance(target, type) else BaseSampler


def make_sampler(settings: DictConfig) -> BaseSampler:
    """Make the sampler of `settings.sampler`. Raises UserError if it cannot be built."""
    if settings.sampler is None or is_grid(settings):
        return PlacedSampler(lambda seed: TPESampler(seed=seed), settings.seed)
    bound = _bind(SAMPLER, settings)
    own_seed = settings.sampler.get("seed")  # as the stock Optuna sweeper has it
    study_seed = settings.seed if own_seed is None else own_seed
    takes_seed = "seed" in inspect.signature(bound.func).parameters

    def arguments(seed: int) -> dict[str, Any]:
        if bound.func is QMCSampler:  # all trials take their points from one sequence
            independent = RandomSampler(seed=seed)
            return {"independent_sampler": independent, **bound.keywords, "seed": study_seed}
        return {"seed": seed} if takes_seed else {}

    def make(seed: int) -> BaseSampler:
        with argument_errors(SAMPLER, settings):
            sampler = bound(**arguments(seed))
        if not isinstance(sampler, BaseSampler):
            raise _wrong_kind(SAMPLER, settings)
        return sampler

    return PlacedSampler(make, study_seed)


def make_pruner(settings: DictConfig) -> BasePruner:
    """Make the pruner of `settings.pruner`. Raises UserError if it cannot be built."""
    if settings.pruner is None:
        return NopPruner()
    bound = _bind(PRUNER, settings)

    def make() -> BasePruner:
        with argument_errors(PRUNER, settings):
            pruner = bound()
        if not isinstance(pruner, BasePruner):
            raise _wrong_kind(PRUNER, settings)
        return pruner

    return PlacedPruner(make, settings.seed)


@contextmanager
def argument_errors(which: str, settings: DictConfig) -> Iterator[None]:
    """Word what Optuna raises if a sampler or a pruner cannot work with its arguments."""
    try:
        yield
    except (TypeError, ValueError, ArithmeticError, AssertionError, NotImplementedError) as error:
        node = settings[which]
        given = OmegaConf.to_container(node) if node is not None else {}
        assert isinstance(given, dict)
        arguments = ", ".join(f"{k!s}={v}" for k, v in given.items() if k != "_target_")
        reason = " ".join(str(error).split()) or type(error).__name__
        call = f"{given.get('_target_')}({arguments})"
        raise UserError(f"{settings.key}.{which}: {call}: {reason}") from error


def _bind(which: str, settings: DictConfig) -> "partial[Any]":
    node = settings[which]
    if OmegaConf.is_dict(node) and node.get("_target_"):
        bound = bind(node)
        if not isinstance(bound.func, type) or issubclass(bound.func, KINDS[which]):
            return bound
    raise _wrong_kind(which, settings)


def _wrong_kind(which: str, settings: DictConfig) -> UserError:
    node = settings[which]
    written = f"._target_={node.get('_target_')}" if OmegaConf.is_dict(node) else f"={node}"
    return UserError(f"{settings.key}.{which}{written}: expected a class of optuna.{which}s")
