"""Settings of the convolutional networks in models.py."""

from dataclasses import field
from typing import Literal

from mnist_sweep.common.schema import schema


@schema
class CNNConfig:
    """Arguments of `mnist_sweep.models.CNN`."""

    _target_: str = "mnist_sweep.models.CNN"
    stages: list[list[int]] = field(default_factory=list)  # channels of each stage's convolutions
    nf: int = 1  # what the numbers of `stages` are multiples of
    head: list[int] = field(default_factory=list)  # widths of the hidden linear layers
    kernel_size: int = 3
    padding: Literal["same", "valid"] = "same"
    activation: str = "ReLU"  # a class of torch.nn
    activate: Literal["conv", "stage"] = "conv"  # after every convolution, or once a stage
    batch_norm: bool = False  # after every convolution
    logits_batch_norm: bool = False
    bias: bool = True  # of the convolutions and of the logits
    pool: Literal["max", "none"] = "max"  # 2x2, stride 2, at the end of every stage
    dropout: float = 0.0  # after every hidden linear layer
