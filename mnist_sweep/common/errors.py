"""Errors that the user can fix. The command line prints them as one line and exits with code 2."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An error in the user's input. Its message says what was expected, what was given, what to do."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return " (did you mean '...'?)" if one of `choices` resembles `word`, otherwise ""."""
    by_folded = {choice.casefold(): choice for choice in choices}
    close = difflib.get_close_matches(word.casefold(), list(by_folded), n=1)
    return f" (did you mean '{by_folded[close[0]]}'?)" if close else ""
