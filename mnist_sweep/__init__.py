"""Hydra configs in, trained image classifiers out: one run, a grid or an Optuna search, all in MLflow."""

__version__ = "0.1.0"
