"""Words the errors that Hydra and OmegaConf raise while they compose a configuration."""

import re

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from mnist_sweep.common.errors import did_you_mean


def explain(error: Exception) -> str:
    """Return the message of an error in a line or two, with the valid choices."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        hint = did_you_mean(choice, error.options)
        options = ", ".join(error.options) or "none"
        return f"{group}={choice}: no such choice{hint}; there are {options}"
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: cannot be parsed; put a value into quotes: 'key=\"it's, a value\"'"
        )
    # what follows an empty line is Hydra's search path
    message = " ".join(str(error).strip().partition("\n\n")[0].split())
    if ambiguous := re.match(r"Ambiguous value for argument '(.*?)' 1\.", message):
        return f"{ambiguous[1]}: several values are a sweep: add -m; a list is written [a,b], a text 'a,b'"
    cause = error.__cause__ or error
    if not isinstance(cause, OmegaConfBaseException):
        return message
    key = cause.full_key or str(cause.key)
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.parent_node is not None:
        choices = [str(k) for k in cause.parent_node if not str(k).startswith("_") and k != "hydra"]
        hint = did_you_mean(str(cause.key), choices)
        return f"{key}: no such key{hint}; there are {', '.join(choices) or 'none'}"
    reason = str(cause.msg or cause).splitlines()[0]
    override = message.removeprefix("Error merging override ")
    if override != message:
        return f"{override}: {reason}"
    return f"{key}: {reason}" if key and key != "None" else (message or reason)
