"""Predict the progress of diabetes from ten measurements, with a small network in plain PyTorch.

Bad trials stop early, and an interrupted trial continues from its last epoch.
"""

import logging
from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from sklearn.datasets import load_diabetes

from mnist_sweep.sweep import current_trial

log = logging.getLogger(__name__)
N_TRAIN = 342  # of 442 patients


@hydra.main(config_path=".", config_name="config")
def main(cfg: DictConfig) -> float:
    torch.manual_seed(cfg.seed)
    data = load_diabetes()
    inputs = torch.tensor(data.data, dtype=torch.float32) * 20
    targets = torch.tensor(data.target, dtype=torch.float32).unsqueeze(1) / 100
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    train, validation = order[:N_TRAIN], order[N_TRAIN:]

    layers = [torch.nn.Linear(10, cfg.width), torch.nn.ReLU(), torch.nn.Dropout(cfg.dropout)]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(cfg.width, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=cfg.lr)
    loss_function = torch.nn.MSELoss()

    trial = current_trial()
    checkpoint = Path(HydraConfig.get().runtime.output_dir) / "last.pt"
    first = 1
    if trial.resume_from is not None:  # an earlier attempt was interrupted
        saved = torch.load(trial.resume_from / "last.pt")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["epoch"] + 1

    loss = float("inf")
    for epoch in range(first, cfg.epochs + 1):
        model.train()
        for batch in train.split(cfg.batch_size):
            optimizer.zero_grad()
            loss_function(model(inputs[batch]), targets[batch]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            loss = loss_function(model(inputs[validation]), targets[validation]).item()
        log.info("epoch %d: validation loss %.4f", epoch, loss)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        torch.save(state, checkpoint)
        if trial.report(epoch, {"val/loss": loss}):  # pruned
            break
    return loss


if __name__ == "__main__":
    main()
