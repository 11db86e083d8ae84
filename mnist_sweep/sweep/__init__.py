"""The sweep engine: a Hydra sweeper on Optuna's storage, with workers that never wait for each other."""
