from pathlib import Path
from typing import Any

import pytest
import torch
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
    monkeypatch.setattr("mnist_sweep.common.build.TRUSTED_BY_USER", ("textwrap.*",))
    assert bind(node)() == "a"


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "os:system",
        "mnist_sweep.models.torch.load",
        "mnist_sweep.models.copy.deepcopy",
        "mnist_sweep.models._activation",
        "mnist_sweep.models.UserError",
        "mnist_sweep.data.sources._download",
        "mnist_sweep.data.sources.read_verified",
        "mnist_sweep.data.dataset.load_dataset",
        "torch.nn.Module.load_state_dict",
        "torch.nn.modules.module.torch.load",
        "torch.nn.modules.module.functools.partial",
        "torch.nn.functional.importlib.import_module",
        "torch.optim.optimizer.torch.hub.load",
        "torchvision.models.get_model",
        "torchvision.models._api.load_state_dict_from_url",
        "torchvision.models.feature_extraction.create_feature_extractor",
        "optuna.samplers._cmaes.pickle.loads",
        "torch.nn",
        "",
        7,
        None,
    ],
)
def test_bind_refuses_what_is_no_trusted_class(target: Any) -> None:
    with pytest.raises(UserError):
        bind(OmegaConf.create({"_target_": target}))
    inner = {"_target_": "torch.nn.Sequential", "_args_": [{"a": {"_target_": target}}]}
    with pytest.raises(UserError):
        bind(OmegaConf.create(inner))


def test_bind_does_not_call_an_untrusted_inner_target(tmp_path: Path) -> None:
    for inner in (
        {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path"}},
        {"_target_": "torch.nn.modules.module.torch.save", "obj": 1, "f": str(tmp_path / "f")},
    ):
        node = {"_target_": "torch.nn.Linear", "in_features": inner, "out_features": [inner]}
        with pytest.raises(UserError, match="cannot build"):
            bind(OmegaConf.create(node))
    assert not list(tmp_path.iterdir())


def test_builder_of_torchvision_is_trusted() -> None:
    node = {"_target_": "torchvision.models.squeezenet1_1", "num_classes": 3}
    assert build(OmegaConf.create(node))(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
