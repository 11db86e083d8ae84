"""Rules for the values of a configuration, declared beside the types of its schemas.

A field's type says what Hydra accepts. A rule says which of these values make sense, for example
`lr: Annotated[float, above(0)]`. The rule of a list or of a dictionary applies to each of its elements.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Protocol, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mnist_sweep.common.errors import did_you_mean

MAX_INT = 2**63 - 1  # of torch and of databases


class Rule(Protocol):
    @property
    def expected(self) -> str:
        """What an error message asks for."""

    def allows(self, value: Any) -> bool: ...


@dataclass(frozen=True)
class Range:
    """Numbers between two bounds. `at_least` and `above` make one."""

    low: float
    includes_low: bool
    high: float = math.inf
    includes_high: bool = False

    def at_most(self, high: float) -> "Range":
        return dataclasses.replace(self, high=high, includes_high=True)

    def below(self, high: float) -> "Range":
        return dataclasses.replace(self, high=high)

    @property
    def expected(self) -> str:
        text = f"{self.low} or more" if self.includes_low else f"a number above {self.low}"
        if self.high < math.inf:
            text += f" and {'at most' if self.includes_high else 'below'} {self.high}"
        return text

    def allows(self, value: Any) -> bool:
        if isinstance(value, str):  # the type does not allow it, or says something else: "auto"
            return True
        if math.isnan(value):
            return False
        above = value >= self.low if self.includes_low else value > self.low
        return bool(above and (value <= self.high if self.includes_high else value < self.high))


def at_least(low: float) -> Range:
    return Range(low, includes_low=True)


def above(low: float) -> Range:
    return Range(low, includes_low=False)


@dataclass(frozen=True)
class Matching:
    """Text that a regular expression matches as a whole."""

    pattern: str
    expected: str

    def allows(self, value: Any) -> bool:
        return re.fullmatch(self.pattern, str(value), re.DOTALL) is not None


NOT_EMPTY = Matching(r".*\S.*", "a text that is not empty")
SEED = at_least(0).at_most(2**32 - 1)  # NumPy's generators take 32 bits


class _Value(NamedTuple):
    key: str  # dotted
    value: Any = None
    rules: tuple[Rule, ...] = ()
    problem: str | None = None  # what is wrong if there is no value
    is_interpolation: bool = False


def problems(
    cfg: DictConfig, extra: Mapping[str, Rule] | None = None, within: str = ""
) -> list[str]:
    """List what is wrong with the values of a configuration, as "key=value: expected ...".

    Besides the rules of its schemas this covers unknown keys that were added with +, missing values,
    interpolations that do not resolve, and numbers that are not finite or do not fit into 64 bits.

    Args:
        extra: rules of keys that no schema declares, by their dotted keys.
        within: dotted key of `cfg` in the whole configuration.
    """
    found, complaints = [], set()
    for each in sorted(_values(cfg, within), key=_depth):
        rules = [*each.rules, *(rule for key, rule in (extra or {}).items() if key == each.key)]
        complaint = each.problem or _complaint(each.value, rules)
        # an interpolation repeats the complaint about the value that it points to
        if complaint is None or (each.is_interpolation and complaint in complaints):
            continue
        found.append(f"{each.key}{complaint}")
        complaints.add(complaint)
    return found


def _depth(value: _Value) -> tuple[bool, int]:
    return value.is_interpolation, value.key.count(".")


def _values(cfg: DictConfig, within: str, inherited: tuple[Rule, ...] = ()) -> Iterator[_Value]:
    """Yield every value of a configuration, at any depth. `inherited` are the rules of a dictionary."""
    schema = OmegaConf.get_type(cfg)
    hints: dict[str, Any] = {}
    if dataclasses.is_dataclass(schema):
        hints = get_type_hints(schema, include_extras=True)
    is_open = not hints or "_target_" in hints  # a class may take arguments that no schema lists
    for key in map(str, cfg):
        name = f"{within}.{key}" if within else key
        is_interpolation = OmegaConf.is_interpolation(cfg, key)
        if name == "hydra":  # Hydra's own settings, in the configuration of a job
            continue
        if not is_open and key not in hints:
            hint = did_you_mean(key, hints)
            yield _Value(name, problem=f": no such key{hint}; there are {', '.join(hints)}")
            continue
        if OmegaConf.is_missing(cfg, key):
            yield _Value(name, problem=": expected a value")
            continue
        try:
            value = cfg[key]
        except OmegaConfBaseException as error:
            reason = str(error.msg or error).splitlines()[0]
            yield _Value(name, problem=f": {reason}", is_interpolation=True)
            continue
        declared: Any = hints.get(key)
        rules = declared.__metadata__ if get_origin(declared) is Annotated else inherited
        if not isinstance(value, DictConfig):
            yield _Value(name, value, rules, is_interpolation=is_interpolation)
        elif not is_interpolation:  # otherwise these are values of another key
            yield from _values(value, name, rules)


def _scalars(value: Any) -> Iterator[Any]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        for element in value:
            yield from _scalars(element)
    elif value is not None:
        yield value


def _complaint(value: Any, rules: list[Rule]) -> str | None:
    expected = next(filter(None, (_expected(scalar, rules) for scalar in _scalars(value))), None)
    shown = list(value) if isinstance(value, tuple) else value
    return None if expected is None else f"={shown}: expected {expected}"


def _expected(scalar: Any, rules: list[Rule]) -> str | None:
    """Return what is expected in place of a value; None if nothing is wrong with it."""
    for rule in rules:
        if not rule.allows(scalar):
            return rule.expected
    if isinstance(scalar, float) and not math.isfinite(scalar):
        return "a finite number"
    if isinstance(scalar, int) and abs(scalar) > MAX_INT:
        return f"a number of at most {MAX_INT}"
    if isinstance(scalar, str):
        try:
            scalar.encode()
        except UnicodeEncodeError:  # an argument that is not UTF-8
            return "text in UTF-8"
    return None
