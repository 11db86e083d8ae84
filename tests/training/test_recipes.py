"""The recipes under conf/experiment compose, are sound, and say how to run them."""

import pytest
from hydra import compose, initialize_config_dir

from mnist_sweep.config import CONF_DIR, check

RECIPES = sorted((CONF_DIR / "experiment").glob("*.yaml"))
SYSTEMS = {"tiny_vgg", "wide_fc", "simple", "deeper", "vgg", "filters", "compact", "mlp"}


def test_recipes_cover_every_system():
    tuned = {f"{system}_tuned" for system in SYSTEMS}
    assert {path.stem for path in RECIPES} >= SYSTEMS | tuned | {"best_single", "fast99"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_composes_and_says_its_command(path):
    with initialize_config_dir(str(CONF_DIR)):
        cfg = compose("config", [f"experiment={path.stem}"])
    check(cfg)
    header = path.read_text()
    assert header.startswith("# @package _global_\n")
    assert f"python -m mnist_sweep experiment={path.stem}" in header
    assert cfg.trainer.early_stopping.patience is None  # the epochs are part of the recipe


@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_tuned_recipe_takes_fewer_epochs_of_the_same_model(system):
    with initialize_config_dir(str(CONF_DIR)):
        published, tuned = (
            compose("config", [f"experiment={name}"]) for name in (system, f"{system}_tuned")
        )
    assert published.model == tuned.model
    assert 3 * tuned.trainer.max_epochs <= published.trainer.max_epochs
