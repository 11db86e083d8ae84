from omegaconf import OmegaConf

from mnist_sweep.common.configs import flatten


def test_flatten_resolves_and_keeps_empty_values() -> None:
    flat = flatten(OmegaConf.create({"a": {"b": 1, "c": "${a.b}", "d": {}, "e": None}}))
    assert flat == {"a.b": "1", "a.c": "1", "a.d": "{}", "a.e": "None"}
