"""Values as text in Hydra's override grammar, and back.

A value that is drawn for a trial travels as text: in the study, in the printed commands, and as an
override `name=text`. The text keeps the value's type, so the string "1" is `'1'` and the number is `1`.
"""

from functools import cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, Transformer
from hydra.errors import HydraException


def to_text(value: Any) -> str:
    """Return the text that Hydra reads as `value`: a scalar, None, or a list or dict of them."""
    if isinstance(value, str) and _is_plain(value):
        return value
    return str(Transformer.str(_quoted(value)))


@cache
def from_text(text: str) -> Any:
    """Return the value of a text in Hydra's grammar. Do not change a list or a dict that it returns."""
    return _parse(f"x={text}").value()


def choices(override: Override) -> list[str | int | float | bool]:
    """Return the choices of an override such as `x=a,b` or `x=choice(a,b)`, as Optuna can store them.

    Numbers and booleans stay as they are. All else is text for `from_text`.
    """
    stored: list[str | int | float | bool] = []
    for value in override.sweep_iterator():
        # Optuna takes 1, 1.0 and True for one choice, as Python does
        is_confusable = any(value == other and repr(value) != repr(other) for other in stored)
        is_number = isinstance(value, int | float) and not is_confusable
        stored.append(value if is_number else to_text(value))  # type: ignore[arg-type]
    return stored


def _parse(override: str) -> Override:
    return OverridesParser.create().parse_override(override)


def _is_plain(text: str) -> bool:
    """Whether Hydra reads a text without quotes as the same text, also if a comma follows."""
    if text.endswith("\\"):
        return False
    try:
        override = _parse(f"x={text}")
    except HydraException:
        return False
    return not override.is_sweep_override() and override.value() == text


def _quoted(value: Any) -> Any:
    """Put quotes around the strings in a value that need them."""
    if isinstance(value, list):
        return [_quoted(item) for item in value]
    if isinstance(value, dict):
        return {key: _quoted(item) for key, item in value.items()}
    if isinstance(value, str) and (not value or not _is_plain(value)):
        return QuotedString(value, Quote.single)
    return value
