import pytest
from omegaconf import OmegaConf

from mnist_sweep.common.build import bind, build
from mnist_sweep.common.errors import UserError


def test_build_passes_only_what_the_target_names() -> None:
    node = OmegaConf.create({"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3})
    assert build(node, bias=False, no_such_argument=1).bias is None


@pytest.mark.parametrize("extra", [{"no_such": 1}, {"in_features": "many"}])
def test_build_says_which_target_does_not_take_its_arguments(extra: dict[str, object]) -> None:
    node = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3, **extra}
    with pytest.raises(UserError, match=r"cannot build torch\.nn\.Linear"):
        build(OmegaConf.create(node))


def test_bind_runs_only_trusted_code(monkeypatch: pytest.MonkeyPatch) -> None:
    node = OmegaConf.create({"_target_": "textwrap.dedent", "text": " a"})
    with pytest.raises(UserError, match=r"MNIST_SWEEP_TRUST=textwrap\.\*"):
        bind(node)
    monkeypatch.setenv("MNIST_SWEEP_TRUST", "textwrap.*")
    assert bind(node)() == "a"
