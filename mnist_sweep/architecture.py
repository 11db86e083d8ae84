"""Settings of the convolutional networks in models.py."""

from dataclasses import field
from typing import Literal

from mnist_sweep.common.schema import schema


@schema
class CNNConfig:
    """Architecture of a `mnist_sweep.models.CNN`."""

    _target_: str = "mnist_sweep.models.CNN"
    # for each stage the output channels of its convolutions, in multiples of nf; []: a plain MLP
    stages: list[list[int]] = field(default_factory=list)
    nf: int = 1
    head: list[int] = field(default_factory=list)  # widths of the hidden linear layers
    kernel_size: int = 3
    padding: Literal["same", "valid"] = "same"  # same keeps the image size, valid pads nothing
    activation: str = "ReLU"  # name of a class in torch.nn
    activate: Literal["conv", "stage"] = "conv"  # after every convolution, or at the end of a stage
    batch_norm: bool = False  # after every convolution
    logits_batch_norm: bool = False  # after the logits
    bias: bool = True  # of the convolutions and the logits; superfluous in front of a batch norm
    pool: Literal["max", "none"] = "max"  # at the end of every stage; max halves the image size
    dropout: float = 0.0  # after every hidden linear layer
