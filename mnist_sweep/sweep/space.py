"""The search space of a sweep, written in Hydra's override grammar."""

import itertools
import json
import math
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, RangeSweep
from hydra_plugins.hydra_optuna_sweeper._impl import (
    OptunaSweeperImpl,
    create_optuna_distribution_from_override,
)
from omegaconf import DictConfig, OmegaConf
from optuna import Trial
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from mnist_sweep.common.configs import is_under
from mnist_sweep.common.errors import UserError, did_you_mean
from mnist_sweep.common.secrets import refuse_secret
from mnist_sweep.sweep.optuna_internals import suggest
from mnist_sweep.sweep.overrides import choices, from_text, to_text

MAX_POINTS = 100_000  # of a grid
FORMS = "choice(a, b), range(a, b) or interval(a, b)"


@dataclass(frozen=True)
class Space:
    """The parameters that vary, by the name of their override, in the order written."""

    distributions: dict[str, BaseDistribution]
    fixed: list[str]  # overrides of every trial
    # conditional parameter -> {other parameter or config group: values with which it exists}
    when: Mapping[str, Mapping[str, list[str]]] = field(default_factory=dict)
    # parameters given as interval(...), which make the space more than a grid
    intervals: frozenset[str] = frozenset()
    # dotted name of a function of the application, (config, trial) -> None, that suggests more
    extender: str | None = None

    def suggest(self, trial: Trial, config: DictConfig) -> dict[str, Any]:
        """Draw the parameters of `trial`, conditional ones after the parameters they depend on."""
        drawn: dict[str, Any] = {}
        for name in sorted(self.distributions, key=lambda name: name in self.when):
            if self._exists(name, drawn, config):
                drawn[name] = suggest(trial, name, self.distributions[name])
        if self.extender is not None:
            pkgutil.resolve_name(self.extender)(config, trial)
            more = {name: v for name, v in trial.params.items() if name not in drawn}
            drawn |= {n: to_text(v) if isinstance(v, str) else v for n, v in more.items()}
        return drawn

    def _exists(self, name: str, drawn: Mapping[str, Any], config: DictConfig) -> bool:
        def current(key: str) -> str:
            if key in drawn:
                value = drawn[key]
                return str(from_text(value) if isinstance(value, str) else value)
            choice = config.hydra.runtime.choices.get(key)
            return str(choice if choice is not None else OmegaConf.select(config, key))

        return all(current(key) in allowed for key, allowed in self.when.get(name, {}).items())

    def example(self, config: DictConfig) -> dict[str, Any]:
        """One point of the space: the first choice or the lower bound of every parameter."""
        point: dict[str, Any] = {}
        for name in sorted(self.distributions, key=lambda name: name in self.when):
            distribution: Any = self.distributions[name]
            if self._exists(name, point, config):
                categorical = isinstance(distribution, CategoricalDistribution)
                point[name] = distribution.choices[0] if categorical else distribution.low
        return point

    @property
    def is_grid(self) -> bool:
        return not self.intervals

    def grid(self, config: DictConfig) -> dict[str, dict[str, Any]]:
        """Every combination, keyed by its JSON; the last parameter varies fastest."""
        to_choices = OptunaSweeperImpl._to_grid_sampler_choices
        sizes = {name: _n_choices(d) for name, d in self.distributions.items()}
        if math.prod(sizes.values()) > MAX_POINTS:
            raise UserError(
                f"a grid of {' x '.join(map(str, sizes.values()))} points ({', '.join(sizes)}): "
                f"expected at most {MAX_POINTS:,}; a search, that is with n_trials, draws from it"
            )
        axes = {name: to_choices(d) for name, d in self.distributions.items()}
        points: dict[str, dict[str, Any]] = {}
        for values in itertools.product(*axes.values()):
            point = dict(zip(axes, values, strict=True))
            kept = {name: v for name, v in point.items() if self._exists(name, point, config)}
            points.setdefault(json.dumps(kept, sort_keys=True), kept)
        return points

    def fingerprint(self, settings: DictConfig) -> dict[str, Any]:
        """What must stay the same for all trials of one study."""
        free = (*settings.own_keys, *settings.may_change)
        fixed = (override.partition("=")[::2] for override in self.fixed)
        return {
            **{name: distribution_to_json(d) for name, d in self.distributions.items()},
            **{f"when {name}": dict(condition) for name, condition in self.when.items()},
            **{key: value for key, value in fixed if not is_under(key, free)},
        }


def parse(settings: DictConfig, arguments: list[str]) -> Space:
    """The space of `sweep.space`, overridden by the command line, where a plain value fixes a parameter.

    Raises:
        UserError: an entry does not follow Hydra's override grammar, or `when` names no parameter.
    """
    parser = OverridesParser.create()
    declared = [f"{name}={value}" for name, value in (settings.space or {}).items()]
    distributions: dict[str, BaseDistribution] = {}
    fixed: list[str] = []
    intervals, known = set(), set()
    for override in [*parser.parse_overrides(declared), *parser.parse_overrides(arguments)]:
        assert override.input_line is not None
        name = override.get_key_element()
        known.add(name)
        distributions.pop(name, None)
        intervals.discard(name)
        if override.is_sweep_override():
            _check_may_vary(override, settings)
            _check_length(override)
            distributions[name] = _distribution(override)
            if override.is_interval_sweep():
                intervals.add(name)
        elif not name.startswith(("hydra.", "hydra/")):
            fixed.append(override.input_line)
    if malformed := [name for name, each in settings.when.items() if not OmegaConf.is_dict(each)]:
        name = malformed[0]
        raise UserError(
            f"{settings.key}.when.{name}={settings.when[name]}: expected {{parameter: values}}"
        )
    if unknown := [name for name in settings.when if name not in known]:
        hint = did_you_mean(unknown[0], list(known))
        raise UserError(f"{settings.key}.when.{unknown[0]}: not a parameter of the space{hint}")
    when = {
        name: {
            key: [str(v) for v in (allowed if OmegaConf.is_list(allowed) else [allowed])]
            for key, allowed in condition.items()
        }
        for name, condition in settings.when.items()
        if name in distributions
    }
    extender = settings.custom_search_space
    try:
        if extender is not None and not callable(pkgutil.resolve_name(extender)):
            raise ValueError("not a function")
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{settings.key}.custom_search_space={extender}: {error}") from error
    return Space(distributions, fixed, when, frozenset(intervals), extender)


def _n_choices(distribution: Any) -> int:
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    step = distribution.step or 1
    return int((distribution.high - distribution.low) / step) + 1


def _check_may_vary(override: Override, settings: DictConfig) -> None:
    """Raise UserError for what describes the sweep as a whole."""
    key = override.get_key_element().lstrip("+~").partition("@")[0].replace("/", ".")
    if is_under(key, (*settings.own_keys, "hydra")):
        raise UserError(
            f"{override.input_line}: {key} cannot vary within a sweep; expected one value"
        )


def _check_length(override: Override) -> None:
    """Raise UserError for a range that would become a list of choices which fits into no memory."""
    value = override.value()
    if not isinstance(value, RangeSweep):
        return
    ends = (value.start or 0, value.stop or 0, value.step)
    is_float = any(
        isinstance(x, float) for x in ends
    )  # floats may lie too close for Optuna's steps
    if not (value.shuffle or value.transformers or is_float):
        return
    start, stop, step = map(float, ends)
    if step and not abs((stop - start) / step) <= MAX_POINTS:
        raise UserError(f"{override.input_line}: expected a range of at most {MAX_POINTS:,} values")


def _distribution(override: Override) -> BaseDistribution:
    line = override.input_line
    if isinstance(override.value(), Glob):
        raise UserError(f"{line}: expected {FORMS}")
    try:
        if override.is_choice_sweep():
            distribution = CategoricalDistribution(choices(override))
        else:
            distribution = create_optuna_distribution_from_override(override)
    except (ValueError, TypeError, ArithmeticError, NotImplementedError, AssertionError) as error:
        # an error of `decimal` names its class only
        is_worded = str(error) and not isinstance(error, ArithmeticError)
        reason = str(error).partition("\n")[0].rstrip(".") if is_worded else "not a space of values"
        raise UserError(f"{line}: {reason}; expected {FORMS}") from error
    if isinstance(distribution, CategoricalDistribution):
        for choice in distribution.choices:
            refuse_secret(override.get_key_element(), str(choice))
        # Optuna cannot tell apart what Python takes for equal
        if len(set(distribution.choices)) < len(distribution.choices):
            raise UserError(f"{line}: a value appears twice; expected different values")
    elif isinstance(distribution, FloatDistribution | IntDistribution):
        if not (math.isfinite(distribution.low) and math.isfinite(distribution.high)):
            raise UserError(f"{line}: expected an interval with finite ends")
        if override.is_interval_sweep() and not distribution.low < distribution.high:
            raise UserError(f"{line}: expected an interval whose first end is the smaller one")
    assert isinstance(distribution, BaseDistribution)
    return distribution
