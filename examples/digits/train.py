"""Classify scikit-learn's handwritten digits. The sweep needs nothing of this code but its return value."""

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


@hydra.main(config_path=".", config_name="config")
def main(cfg: DictConfig) -> float:
    images, labels = load_digits(return_X_y=True)
    model = make_pipeline(
        StandardScaler(), instantiate(cfg.model, _execution_whitelist_=["sklearn.*"])
    )
    accuracy = cross_val_score(model, images, labels, cv=3).mean()
    print(f"accuracy {accuracy:.4f} with {cfg.model}")
    return float(accuracy)


if __name__ == "__main__":
    main()
