"""The recipes under conf/experiment: each composes, is valid, and states its command."""

import pytest

from mnist_sweep.config import CONF_DIR, check
from tests.helpers.configs import composed

RECIPES = sorted((CONF_DIR / "experiment").glob("*.yaml"))
SYSTEMS = {"tiny_vgg", "wide_fc", "simple", "deeper", "vgg", "filters", "compact", "mlp"}


def test_recipes_cover_every_system():
    tuned = {f"{system}_tuned" for system in SYSTEMS}
    assert {path.stem for path in RECIPES} >= SYSTEMS | tuned | {"best_single", "fast99"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_composes_and_states_its_command(path):
    cfg = composed(f"experiment={path.stem}")
    check(cfg)
    header = path.read_text()
    assert header.startswith("# @package _global_\n")
    assert f"python -m mnist_sweep experiment={path.stem}" in header
    assert cfg.trainer.early_stopping.patience is None  # the epochs are part of the recipe


@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_tuned_recipe_trains_the_same_model_for_fewer_epochs(system):
    published, tuned = composed(f"experiment={system}"), composed(f"experiment={system}_tuned")
    assert published.model == tuned.model
    assert 3 * tuned.trainer.max_epochs <= published.trainer.max_epochs
