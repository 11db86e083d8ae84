"""Settings of the convolutional networks in models.py."""

from dataclasses import field
from typing import Annotated, Literal

from mnist_sweep.common.rules import at_least
from mnist_sweep.common.schema import schema

SIZE = at_least(1).at_most(2**20)  # of a layer; a larger one fits into no memory


@schema
class CNNConfig:
    """Architecture of a `mnist_sweep.models.CNN`."""

    _target_: str = "mnist_sweep.models.CNN"
    # for each stage the output channels of its convolutions, in multiples of nf; []: a plain MLP
    stages: Annotated[list[list[int]], SIZE] = field(default_factory=list)
    nf: Annotated[int, SIZE] = 1
    # widths of the hidden linear layers
    head: Annotated[list[int], SIZE] = field(default_factory=list)
    kernel_size: Annotated[int, SIZE] = 3
    padding: Literal["same", "valid"] = "same"  # same keeps the image size, valid pads nothing
    activation: str = "ReLU"  # name of a class in torch.nn
    activate: Literal["conv", "stage"] = "conv"  # after every convolution, or at the end of a stage
    batch_norm: bool = False  # after every convolution
    logits_batch_norm: bool = False  # after the logits
    bias: bool = True  # of the convolutions and the logits; superfluous in front of a batch norm
    pool: Literal["max", "none"] = "max"  # at the end of every stage; max halves the image size
    dropout: Annotated[float, at_least(0).below(1)] = 0.0  # after every hidden linear layer
