"""Words the errors that Hydra and OmegaConf raise while they compose a configuration."""

import re

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from mnist_sweep.common.errors import did_you_mean
from mnist_sweep.common.secrets import mask_url


def explain(error: Exception) -> str:
    """Return the message of an error in a line, with the valid choices."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        hint = did_you_mean(choice, error.options)
        options = ", ".join(error.options) or "none"
        return f"{group}={choice}: no such choice{hint}; there are {options}"
    if isinstance(error, OverrideParseException):
        # a function of the grammar raises an error of its own
        called = re.search(r"while evaluating '.*': (.*)", str(error))
        quotes = "cannot be parsed; put a value into quotes: 'key=\"it's, a value\"'"
        return f"{mask_url(error.override)}: {called[1] if called else quotes}"
    # what follows an empty line is Hydra's search path
    message = " ".join(str(error).strip().partition("\n\n")[0].split())
    if ambiguous := re.match(r"Ambiguous value for argument '(.*?)' 1\.", message):
        message = f"{ambiguous[1]}: several values need -m (a sweep); a list is [a,b], a text 'a,b'"
    elif message.startswith("Config group override must be"):  # Hydra does not say which one
        message += "; expected the name of a choice, for example model=simple"
    cause = error.__cause__ or error
    return (
        _explain_omegaconf(cause, message) if isinstance(cause, OmegaConfBaseException) else message
    )


def _explain_omegaconf(error: OmegaConfBaseException, message: str) -> str:
    """Word an error of OmegaConf. `message` is Hydra's, which names the override."""
    key = error.full_key or str(error.key)
    if isinstance(error, ConfigAttributeError | ConfigKeyError) and error.parent_node is not None:
        choices = [str(k) for k in error.parent_node if not str(k).startswith("_") and k != "hydra"]
        hint = did_you_mean(str(error.key), choices)
        return f"{key}: no such key{hint}; there are {', '.join(choices) or 'none'}"
    reason = str(error.msg or error).splitlines()[0]
    override = message.removeprefix("Error merging override ")
    if override != message:
        return f"{override}: {reason}"
    return f"{key}: {reason}" if key and key != "None" else (message or reason)
