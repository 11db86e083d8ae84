"""Checks of a sweep before anything is created. Each raises a UserError that says what was expected."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from itertools import islice
from typing import Any

import optuna
from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import CategoricalDistribution
from optuna.samplers import CmaEsSampler, QMCSampler

from mnist_sweep.common.errors import UserError, did_you_mean
from mnist_sweep.common.rules import problems
from mnist_sweep.sweep import hydra_internals, samplers
from mnist_sweep.sweep.config import OPTUNA_ARGUMENTS, settings_key
from mnist_sweep.sweep.overrides import from_text
from mnist_sweep.sweep.space import Space
from mnist_sweep.sweep.study import check_name

NUMERICAL = (CmaEsSampler, QMCSampler)  # draw a choice at random, whatever they learned
MAX_VARIATIONS = 100


def check_settings(settings: DictConfig, key: str) -> None:
    """Check what the settings of a sweep say by themselves.

    Args:
        key: of the settings in the configuration.
    """
    rules = {f"{key}.{name}": rule for name, rule in OPTUNA_ARGUMENTS.items()}
    if found := problems(settings, rules, within=key):
        raise UserError("; ".join(found))
    for which in (samplers.SAMPLER, samplers.PRUNER):
        if settings[which] is not None and not OmegaConf.is_dict(settings[which]):
            raise UserError(
                f"{key}.{which}={settings[which]}: expected {{_target_: a class}} or null"
            )
    if settings.name is not None:
        check_name(settings.name, f"{key}.name")
    several = "objectives" if settings.objectives else "direction"
    if settings.pruner is not None and (
        settings.objectives or OmegaConf.is_list(settings.direction)
    ):
        raise UserError(
            f"{key}.pruner={settings.pruner.get('_target_')}: a search with several {key}.{several} "
            "cannot prune; expected null"
        )


def check_space(
    space: Space, settings: DictConfig, config: DictConfig, loader: ConfigLoader
) -> None:
    """Check that the parameters can vary as they are meant to."""
    varies = space.distributions or settings.custom_search_space is not None
    if samplers.is_grid(settings):
        if not space.is_grid or settings.custom_search_space is not None:
            raise UserError(
                f"{settings.key}.sampler={settings.sampler._target_}: a grid has no intervals; "
                "expected choice(a, b) or range(a, b) for every parameter"
            )
    elif not varies and settings.sampler is not None:
        raise UserError(
            "nothing varies in this search: expected an interval (key=interval(a,b)) or several "
            "values (key=a,b)"
        )
    for name, distribution in space.distributions.items():
        options = loader.get_group_options(name)
        choices = getattr(distribution, "choices", None)
        if options and choices is None:
            raise UserError(
                f"{name}: an interval or a range over a config group; expected some of "
                f"{', '.join(options)}"
            )
        for choice in choices or () if options else ():
            _check_choice(name, from_text(str(choice)), options)
    for name, conditions in space.when.items():
        _check_conditions(name, conditions, space, config, loader)


def rehearse(space: Space, settings: DictConfig, config: DictConfig, directions: list[Any]) -> None:
    """Draw one point in memory: the sampler and the pruner exist, and accept their arguments."""
    sampler, pruner = samplers.make_sampler(settings), samplers.make_pruner(settings)
    kind = samplers.sampler_class(settings)
    categorical = [
        name
        for name, distribution in space.distributions.items()
        if isinstance(distribution, CategoricalDistribution)
    ]
    if issubclass(kind, NUMERICAL) and categorical:
        raise UserError(
            f"{categorical[0]}: choices, but {settings.sampler._target_} handles numerical parameters "
            "only; expected an interval, a range or a single value"
        )
    if issubclass(kind, CmaEsSampler) and len(directions) > 1:
        raise UserError(
            f"{settings.key}.sampler={settings.sampler._target_}: handles a single objective; "
            "expected another sampler"
        )
    study = optuna.create_study(directions=directions, sampler=sampler, pruner=pruner)
    with samplers.argument_errors(samplers.SAMPLER, settings):
        trial = study.ask()
        space.suggest(trial, config)
    if len(directions) == 1:
        with samplers.argument_errors(samplers.PRUNER, settings):
            trial.report(0.0, step=1)
            trial.should_prune()


def variations(space: Space, example: DictConfig, point: Mapping[str, Any]) -> list[DictConfig]:
    """Return configurations that differ from `example` in one parameter.

    They cover every choice and both ends of every interval, but no config groups. Only the first
    MAX_VARIATIONS are made.

    Raises:
        HydraException: a value does not fit the type of its key.
    """
    return [
        hydra_internals.with_override(deepcopy(example), override)
        for override in islice(_variations(space, example, point), MAX_VARIATIONS)
    ]


def _variations(space: Space, example: DictConfig, point: Mapping[str, Any]) -> Iterator[str]:
    for name in point:
        distribution: Any = space.distributions[name]
        if name in example.hydra.runtime.choices:
            continue
        values = getattr(distribution, "choices", None) or (distribution.low, distribution.high)
        # the example has the key already, also if it was added with +
        yield from (f"++{name.lstrip('+')}={value}" for value in values[1:])


def _check_choice(group: str, choice: Any, options: list[str]) -> None:
    if choice not in options:
        hint = did_you_mean(str(choice), options)
        raise UserError(f"{group}={choice}: no such choice{hint}; there are {', '.join(options)}")


def _check_conditions(
    name: str,
    conditions: Mapping[str, list[str]],
    space: Space,
    config: DictConfig,
    loader: ConfigLoader,
) -> None:
    """Check the conditions under which a parameter exists."""
    for key, values in conditions.items():
        options = loader.get_group_options(key)
        for value in values if options else ():
            _check_choice(key, value, options)
        is_known = (
            options or key in space.distributions or OmegaConf.select(config, key) is not None
        )
        if not is_known:
            hint = did_you_mean(key, space.distributions)
            raise UserError(f"{settings_key(config)}.when.{name}.{key}: no such parameter{hint}")
