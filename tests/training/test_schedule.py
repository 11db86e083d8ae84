"""The learning-rate schedules of the configurations."""

import pytest
import torch

from mnist_sweep.training.schedule import build_schedule
from tests.helpers.configs import composed


def test_plateau_counts_an_unchanged_loss_as_no_improvement() -> None:
    cfg = composed("scheduler=plateau", "objective=val/loss", "direction=minimize")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(cfg.scheduler, optimizer, total_steps=10)
    for _ in range(5):
        schedule.after_epoch(-0.1)  # the score of a loss of 0.1
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_schedule_without_a_scheduler_keeps_the_learning_rate() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(composed().scheduler, optimizer, total_steps=10)
    schedule.after_step()
    schedule.after_epoch(1.0)
    assert optimizer.param_groups[0]["lr"] == 1.0
    assert schedule.state_dict() is None
