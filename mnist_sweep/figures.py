"""Arrays in, matplotlib Figures out. Fonts, sizes and colours are set here."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

# Okabe & Ito (2008), told apart under every common form of colour blindness.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
STYLE: Any = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
    "savefig.dpi": 110,
}


def learning_curves(history: Sequence[Mapping[str, float]], best_epoch: int) -> Figure:
    """Loss and accuracy of training and validation by epoch; `history` has one mapping an epoch."""
    epochs = range(1, len(history) + 1)
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        for axes, name, unit in zip(
            figure.subplots(1, 2), ("loss", "accuracy"), ("cross-entropy", "%"), strict=True
        ):
            factor = 100 if name == "accuracy" else 1
            for split, colour in (("train", BLUE), ("val", ORANGE)):
                values = [factor * epoch[f"{split}/{name}"] for epoch in history]
                label = "training" if split == "train" else "validation"
                axes.plot(epochs, values, color=colour, marker="o", markersize=3, label=label)
            axes.axvline(best_epoch, color=GREEN, linestyle="--", label=f"best: epoch {best_epoch}")
            axes.set(xlabel="epoch", ylabel=f"{name} ({unit})", title=name.capitalize())
            axes.set_xlim(0.5, len(history) + 0.5)  # whole numbers on the axis, for one epoch too
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.legend(frameon=False)
    return figure


def confusion_matrix(matrix: NDArray[np.int64], classes: Sequence[str], title: str) -> Figure:
    """Counts [n_classes, n_classes], true classes in rows; coloured by the errors, not the diagonal."""
    n = len(classes)
    errors = matrix * ~np.eye(n, dtype=bool)
    longest = max(map(len, classes))
    with rc_context({**STYLE, "axes.grid": False}):
        side = 2.6 + 0.45 * n
        figure = Figure(figsize=(side, side), layout="constrained")
        axes = figure.subplots()
        axes.imshow(np.where(np.eye(n, dtype=bool), np.nan, errors), cmap="Oranges", vmin=0)
        for row in range(n):
            for column in range(n):
                count = matrix[row, column]
                dark = row != column and count > 0.6 * max(errors.max(), 1)
                colour = "white" if dark else GREEN if row == column else "black"
                if count:
                    axes.text(column, row, count, ha="center", va="center", color=colour, size=9)
        axes.set_xticks(range(n), classes, rotation=90 if longest > 3 else 0)
        axes.set_yticks(range(n), classes)
        axes.set(xlabel="predicted", ylabel="true", title=title)
        axes.spines[:].set_visible(False)
    return figure


def class_distribution(
    counts: Mapping[str, NDArray[np.int64]], classes: Sequence[str], title: str
) -> Figure:
    """Images of each class, one panel a split; `counts` maps a split's name to [n_classes]."""
    longest = max(map(len, classes))
    with rc_context({**STYLE, "axes.grid.axis": "y"}):
        figure = Figure(
            figsize=(max(8.0, 0.4 * len(classes)), 3 * len(counts)), layout="constrained"
        )
        for axes, (name, count) in zip(
            np.atleast_1d(figure.subplots(len(counts))), counts.items(), strict=True
        ):
            axes.bar(range(len(classes)), count, color=BLUE)
            axes.axhline(count.mean(), color=ORANGE, linestyle="--")
            axes.set_axisbelow(True)
            axes.set_xticks(range(len(classes)), classes, rotation=90 if longest > 3 else 0)
            found = f"{count.sum():,} images, {count.mean():,.0f} a class on average (dashed)"
            axes.set(ylabel="images", title=f"{name}: {found}")
        figure.suptitle(title)
    return figure


def image_grid(
    images: NDArray[np.generic], captions: Sequence[str], title: str, columns: int = 5
) -> Figure:
    """Images [N, C, H, W] (uint8, or float in 0..1), each under its caption."""
    rows = max(1, -(-len(images) // columns))
    largest = 255 if images.dtype == np.uint8 else 1
    with rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(1.5 * columns, 1.75 * rows + 0.4), layout="constrained")
        for axes in figure.subplots(rows, columns, squeeze=False).flat:
            axes.axis("off")
        for axes, image, caption in zip(figure.axes, images, captions, strict=False):
            axes.imshow(image.transpose(1, 2, 0).squeeze(), cmap="gray_r", vmin=0, vmax=largest)
            axes.set_title(caption, fontsize=10)
        figure.suptitle(title)
    return figure


def error_overlap(counts: NDArray[np.int64], names: Sequence[str], title: str) -> Figure:
    """Images that two models both get wrong [M, M]; the share of the row's errors gives the colour."""
    n = len(names)
    share = counts / np.maximum(np.diag(counts)[:, None], 1)
    with rc_context({**STYLE, "axes.grid": False}):
        side = 3.2 + 0.6 * n
        figure = Figure(figsize=(side + 0.8, side), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(100 * share, cmap="Blues", vmin=0, vmax=100)
        for row in range(n):
            for column in range(n):
                colour = "white" if share[row, column] > 0.6 else "black"
                axes.text(column, row, counts[row, column], ha="center", va="center", color=colour)
        axes.set_xticks(range(n), names, rotation=90)
        axes.set_yticks(range(n), names)
        axes.set(title=title)
        axes.spines[:].set_visible(False)
        figure.colorbar(image, ax=axes, label="% of the row's errors", shrink=0.7)
    return figure
