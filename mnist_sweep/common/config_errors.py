"""Words the errors that Hydra and OmegaConf raise while they compose a configuration."""

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from mnist_sweep.common.errors import did_you_mean
from mnist_sweep.common.secrets import mask_url


def explain(error: Exception) -> str:
    """Return the message of an error in a line or two, with the valid choices."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        hint = did_you_mean(choice, error.options)
        options = ", ".join(error.options) or "none"
        return f"{group}={choice}: no such choice{hint}; there are {options}"
    if isinstance(error, OverrideParseException):
        shown = mask_url(error.override)
        return f"{shown}: cannot be parsed; put a value into quotes: 'key=\"it's, a value\"'"
    cause = error.__cause__ or error
    message = str(error).strip().splitlines()[0] if str(error).strip() else ""
    if not isinstance(cause, OmegaConfBaseException):
        return str(error).strip()
    key = cause.full_key or str(cause.key)
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.parent_node is not None:
        choices = [str(k) for k in cause.parent_node if not str(k).startswith("_") and k != "hydra"]
        hint = did_you_mean(str(cause.key), choices)
        return f"{key}: no such key{hint}; there are {', '.join(choices) or 'none'}"
    reason = str(cause.msg or cause).splitlines()[0]
    return f"{key}: {reason}" if key and key != "None" else (message or reason)
