"""The one exception that is the user's to mend: shown as one line, exit code 2."""

import difflib
import re
from collections.abc import Iterable


class UserError(Exception):
    """Says what was expected, what came, and what to do."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """' (did you mean ...?)' where one of `choices` is close to `word`, else an empty string."""
    by_folded = {choice.casefold(): choice for choice in choices}
    close = difflib.get_close_matches(word.casefold(), list(by_folded), n=1)
    return f" (did you mean '{by_folded[close[0]]}'?)" if close else ""


def without_password(text: str) -> str:
    """The text with the URLs of databases and servers in it as they may be shown."""
    masked = re.sub(r"(://[^:/\s]*):\S*@", r"\1:***@", text)
    return re.sub(r"(password=)[^&\s]*", r"\1***", masked)
