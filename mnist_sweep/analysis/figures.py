"""Draw matplotlib figures from arrays. This module sets their fonts, sizes and colours."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Figure
from numpy.typing import NDArray

from mnist_sweep.analysis import metrics

# Okabe & Ito (2008): distinguishable under every common form of colour blindness
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
MAX_WITH_COUNTS = 26  # classes of a small confusion matrix, above which its counts do not fit
COLOURS = [BLUE, ORANGE, GREEN, RED, "#CC79A7", "#56B4E9"]
STYLE: Any = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
    "figure.dpi": 110,
    "text.parse_math": False,  # a class or a run may have a $ in its name
}


def learning_curves(history: Sequence[Mapping[str, float]], best_epoch: int) -> Figure:
    """Plot training and validation loss and accuracy.

    Args:
        history: metrics of each epoch, e.g. {"train/loss": 0.1, "val/accuracy": 0.98}.
        best_epoch: epoch to mark, counted from 1.
    """
    epochs = range(1, len(history) + 1)
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        units = ("cross-entropy", "%")
        for axes, name, unit in zip(
            figure.subplots(1, 2), ("loss", "accuracy"), units, strict=True
        ):
            factor = 100 if name == "accuracy" else 1
            for split, colour in (("train", BLUE), ("val", ORANGE)):
                values = [factor * epoch[f"{split}/{name}"] for epoch in history]
                label = "training" if split == "train" else "validation"
                axes.plot(epochs, values, color=colour, marker="o", markersize=3, label=label)
            axes.axvline(best_epoch, color=GREEN, linestyle="--", label=f"best: epoch {best_epoch}")
            axes.set(xlabel="epoch", ylabel=f"{name} ({unit})", title=name.capitalize())
            axes.set_xlim(0.5, len(history) + 0.5)  # room for integer ticks even with one epoch
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.legend(frameon=False)
    return figure


def confusion_matrix(matrix: NDArray[np.int64], classes: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix [n_classes, n_classes] as counts and as percentages of each true class.

    Only errors are coloured. On a common scale with the diagonal they would be invisible.
    """
    n = len(classes)
    off_diagonal = ~np.eye(n, dtype=bool)
    percent = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    longest = max(map(len, classes))
    with rc_context({**STYLE, "axes.grid": False}):
        side = 2.6 + 0.45 * n
        figure = Figure(figsize=(2 * side, side), layout="constrained")
        for axes, values, unit in zip(
            figure.subplots(1, 2), (matrix, percent), ("images", "% of the true class"), strict=True
        ):
            top = max(values[off_diagonal].max(), 1e-9)
            axes.imshow(np.where(off_diagonal, values, np.nan), cmap="Oranges", vmin=0, vmax=top)
            for row, column in np.argwhere(matrix):
                value = values[row, column]
                dark = row != column and value > 0.6 * top
                colour = "white" if dark else GREEN if row == column else "black"
                text = f"{value}" if unit == "images" else f"{value:.1f}"
                axes.text(column, row, text, ha="center", va="center", color=colour, size=9)
            axes.set_xticks(range(n), classes, rotation=90 if longest > 3 else 0)
            axes.set_yticks(range(n), classes)
            axes.set(xlabel="predicted", ylabel="true", title=unit)
            axes.spines[:].set_visible(False)
        figure.suptitle(title)
    return figure


def small_confusion_matrix(matrix: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix [n_classes, n_classes] to be seen beside those of other models.

    The colour of an error is its share of the true class, on the same scale in every picture. The
    square root keeps rare errors visible.
    """
    n = len(classes)
    share = np.sqrt(matrix / np.maximum(matrix.sum(1, keepdims=True), 1))
    np.fill_diagonal(share, np.nan)
    with rc_context({**STYLE, "axes.grid": False, "font.size": 9}):
        side = min(1 + 0.32 * n, 8)
        figure = Figure(figsize=(side, side), layout="constrained")
        axes = figure.subplots()
        axes.imshow(share, cmap="Oranges", vmin=0, vmax=1)
        for row, column in np.argwhere(matrix) if n <= MAX_WITH_COUNTS else ():
            colour = GREEN if row == column else "white" if share[row, column] > 0.7 else "black"
            text = str(matrix[row, column])
            axes.text(column, row, text, ha="center", va="center", color=colour, size=7)
        size = 9 if n <= MAX_WITH_COUNTS else 5
        axes.set_xticks(
            range(n), classes, rotation=90 if max(map(len, classes)) > 3 else 0, size=size
        )
        axes.set_yticks(range(n), classes, size=size)
        n_wrong = int(matrix.sum() - matrix.trace())
        axes.set(xlabel="predicted", ylabel="true", title=f"{n_wrong:,} of {matrix.sum():,} wrong")
        axes.spines[:].set_visible(False)
    return figure


def to_pixels(figure: Figure) -> NDArray[np.uint8]:
    """Render a figure to pixels [H, W, 3]."""
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba(), dtype=np.uint8)[..., :3]


def confusion_title(matrix: NDArray[np.int64], name: str) -> str:
    """Title of a confusion matrix. `name` is that of the data or of the model."""
    n_wrong = int(matrix.sum() - matrix.trace())
    return f"{name}: {n_wrong} of {matrix.sum():,} test images are misclassified"


def per_class(matrix: NDArray[np.int64], classes: Sequence[str], title: str) -> Figure:
    """Plot precision, recall and F1 of each class from a confusion matrix [n_classes, n_classes]."""
    n = len(classes)
    scores = metrics.per_class(matrix)
    with rc_context({**STYLE, "axes.grid.axis": "y"}):
        figure = Figure(figsize=(max(8.0, 0.55 * n), 3.6), layout="constrained")
        axes = figure.subplots()
        series = zip(scores.items(), (BLUE, ORANGE, GREEN), ("v", "^", "D"), strict=True)
        for i, ((name, values), colour, marker) in enumerate(series):
            x = np.arange(n) + 0.2 * (i - 1)
            axes.plot(x, 100 * values, marker, color=colour, label=name, markersize=7)
        lowest = 100 * min(values.min() for values in scores.values())
        axes.set_ylim(max(0.0, lowest - 0.1 * (100 - lowest) - 0.1), 100 + 0.05 * (100 - lowest))
        axes.set_xticks(range(n), classes, rotation=90 if max(map(len, classes)) > 3 else 0)
        axes.set(xlabel="class", ylabel="%", title=title)
        axes.legend(frameon=False, ncols=3)
    return figure


def calibration(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> Figure:
    """Plot accuracy against confidence, from probabilities [N, n_classes] and labels [N]."""
    bins, ece = metrics.calibration(probabilities, labels)
    with rc_context(STYLE):
        figure = Figure(figsize=(5, 5.4), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 100], [0, 100], color="gray", linestyle="--", label="perfect")
        upper.plot(100 * bins.confidence, 100 * bins.accuracy, "o-", color=BLUE, label="this model")
        upper.set(ylabel="accuracy (%)", xlim=(0, 101), ylim=(0, 101))
        upper.set_title(f"Calibration error (ECE): {100 * ece:.2f} points")
        upper.legend(frameon=False)
        lower.bar(100 * bins.centre, bins.n_images, width=5, color=BLUE)
        lower.set(
            xlabel="confidence: probability of the predicted class (%)",
            ylabel="images",
            yscale="log",
        )
    return figure


def prediction(
    image: NDArray[np.generic],
    probabilities: NDArray[np.float32],
    true: int,
    classes: Sequence[str],
) -> Figure:
    """Draw one image [C, H, W] and its ten largest probabilities [n_classes].

    Args:
        true: label of the true class.
        classes: class names in label order.
    """
    shown = np.sort(np.argsort(-probabilities)[:10])
    predicted = int(probabilities.argmax())
    names = [classes[i] for i in shown]
    with rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(7.5, 3.4), layout="constrained")
        left, bars = figure.subplots(1, 2, width_ratios=(1, 1.4))
        left.imshow(image.transpose(1, 2, 0).squeeze(), cmap="gray_r")
        left.axis("off")
        left.set_title(f"true: {classes[true]}")
        colours = [GREEN if i == true else ORANGE for i in shown]
        container = bars.barh(names, 100 * probabilities[shown], color=colours)
        bars.bar_label(container, [f"{100 * p:.1f}" for p in probabilities[shown]], padding=3)
        bars.invert_yaxis()
        bars.set_axisbelow(True)
        bars.set(xlim=(0, 115), xlabel="probability (%), green: true class")
        bars.set_xticks(range(0, 101, 20))
        outcome = "correct" if predicted == true else "wrong"
        bars.set_title(f"{outcome}: predicted {classes[predicted]}")
    return figure


def filters(weights: NDArray[np.float32], title: str, limit: int = 32) -> Figure:
    """Draw first-layer weights [n_filters, C, H, W], averaged over C: blue positive, red negative.

    At most `limit` filters are drawn.
    """
    shown = weights[:limit].mean(1)[..., None]
    columns = min(8, len(shown))
    largest = float(np.abs(shown).max()) or 1.0
    gap = max(1, shown.shape[1] // 5)
    sheet, _ = _mosaic(shown, columns, gap, np.nan)
    with rc_context({**STYLE, "axes.grid": False}):
        rows = -(-len(shown) // columns)
        figure = Figure(figsize=(0.9 * columns + 0.4, 0.9 * rows + 0.5), layout="constrained")
        axes = figure.subplots()
        axes.axis("off")
        axes.imshow(sheet.squeeze(-1), cmap="RdBu", vmin=-largest, vmax=largest)
        figure.suptitle(title)
    return figure


def run_figures(
    selection: str,
    *,
    history: Sequence[Mapping[str, float]],
    best_epoch: int,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    classes: Sequence[str],
    first_layer: NDArray[np.float32] | None,
    data_name: str,
) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of one run as (name, figure).

    Args:
        selection: "all", "few" (learning curves) or "none".
        history: metrics of each epoch; see `learning_curves`.
        best_epoch: counted from 1.
        images: test images [N, C, H, W].
        labels: [N].
        probabilities: [N, n_classes].
        classes: class names in label order.
        first_layer: weights [n_filters, C, H, W]; None if the first layer has no such filters.
        data_name: name of the dataset.
    """
    if selection == "none":
        return
    yield "learning_curves", learning_curves(history, best_epoch)
    if selection == "few":
        return
    predicted = probabilities.argmax(1)
    matrix = metrics.confusion_matrix(predicted, labels, len(classes))
    wrong = np.flatnonzero(predicted != labels)
    title = confusion_title(matrix, data_name)
    yield "confusion_matrix", confusion_matrix(matrix, classes, title)

    def captions(indices: NDArray[np.int64]) -> list[str]:
        return [
            f"{classes[labels[i]]} as {classes[predicted[i]]}, {100 * probabilities[i].max():.0f} %"
            for i in indices
        ]

    if len(wrong):
        confident = wrong[np.argsort(-probabilities[wrong].max(1), kind="stable")]
        title = f"The most confident of {len(wrong)} mistakes: true as predicted, probability"
        yield "mistakes", image_grid(images[confident[:20]], captions(confident[:20]), title)
        i = confident[0]
        yield "prediction", prediction(images[i], probabilities[i], int(labels[i]), classes)
    first = np.arange(min(20, len(labels)))
    title = "The first test images: true as predicted, probability; mistakes in red"
    mistakes = list(predicted[first] != labels[first])
    yield "predictions", image_grid(images[first], captions(first), title, red=mistakes)
    yield "per_class", per_class(matrix, classes, "Test metrics of each class")
    yield "calibration", calibration(probabilities, labels)
    if first_layer is not None:
        title = "Filters of the first layer: positive weights blue, negative red"
        yield "first_layer", filters(first_layer, title)


def class_distribution(
    counts: Mapping[str, NDArray[np.int64]], classes: Sequence[str], title: str
) -> Figure:
    """Plot the number of images of each class, one panel per split.

    Args:
        counts: {split: images of each class [n_classes]}.
        classes: class names in label order.
    """
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
            total = f"{count.sum():,} images, {count.mean():,.0f} per class on average (dashed)"
            axes.set(ylabel="images", title=f"{name}: {total}")
        figure.suptitle(title)
    return figure


def image_grid(
    images: NDArray[np.generic],
    captions: Sequence[str],
    title: str,
    columns: int = 5,
    red: Sequence[bool] | None = None,
) -> Figure:
    """Draw images [N, C, H, W] (uint8, or float in 0..1) in rows, each under its caption.

    Args:
        columns: images in a row.
        red: [N] whether to print each caption in red.
    """
    n, n_channels, height, width = images.shape
    white = (255 if images.dtype == np.uint8 else 1) * (
        n_channels == 3
    )  # grey is inverted when drawn
    sheet, corners = _mosaic(images.transpose(0, 2, 3, 1), columns, height // 4, white)
    rows = max(1, -(-n // columns))
    with rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(1.55 * columns, 1.75 * rows + 0.4), layout="constrained")
        axes = figure.subplots()
        axes.axis("off")
        axes.imshow(
            sheet.squeeze(), cmap="gray_r", vmin=0, vmax=255 if images.dtype == np.uint8 else 1
        )
        for (y, x), caption, in_red in zip(corners, captions, red or [False] * n, strict=False):
            position = x + width / 2, y - height / 14
            axes.text(*position, caption, ha="center", size=10, color=RED if in_red else "black")
        figure.suptitle(title)
    return figure


def _mosaic(
    tiles: NDArray[Any], columns: int, gap: int, fill: float
) -> tuple[NDArray[Any], list[tuple[int, int]]]:
    """Arrange tiles [N, H, W, C] on one sheet [H, W, C], and return it with their corners (y, x).

    There are `gap` pixels above and beside each tile, filled with `fill`. A single sheet is fast:
    matplotlib needs 15 ms to lay out each axes.
    """
    n, height, width, n_channels = tiles.shape
    rows = max(1, -(-n // columns))
    padding = ((0, rows * columns - n), (gap, 0), (gap // 2, gap - gap // 2), (0, 0))
    height, width = height + gap, width + gap
    padded = np.pad(tiles, padding, constant_values=fill)
    sheet = padded.reshape(rows, columns, height, width, n_channels).swapaxes(1, 2)
    corners = [(i // columns * height + gap, i % columns * width + gap // 2) for i in range(n)]
    return sheet.reshape(rows * height, columns * width, n_channels), corners


def error_overlap(counts: NDArray[np.int64], names: Sequence[str], title: str) -> Figure:
    """Draw the number of images that two models both get wrong [M, M].

    The colour shows the share of the errors of the row's model.
    """
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


def robustness(
    rows: Sequence[tuple[str, float, float]], units: Mapping[str, str], unchanged: float
) -> Figure:
    """Plot accuracy on changed test images against the strength of the change.

    Changes with a single strength are listed in the title.

    Args:
        rows: (change, strength, accuracy in 0..1).
        units: {change: unit of its strength}.
        unchanged: accuracy on the unchanged images.
    """
    accuracy = {name: {s: a for n, s, a in rows if n == name} for name in units}
    curves = {name: curve for name, curve in accuracy.items() if len(curve) > 1}
    with rc_context(STYLE):
        figure = Figure(figsize=(3 * len(curves), 3.4), layout="constrained")
        for axes, (name, curve) in zip(
            figure.subplots(1, len(curves), sharey=True), curves.items(), strict=True
        ):
            percent = [100 * a for a in (unchanged, *curve.values())]
            axes.plot([0.0, *curve], percent, "o-", color=BLUE)
            axes.axhline(100 * unchanged, color=ORANGE, linestyle="--")
            axes.set(xlabel=units[name], title=name)
        figure.axes[0].set(ylabel="accuracy (%)", ylim=(0, 103))
        single = [
            f"{name}: {100 * a:.1f} %"
            for name, curve in accuracy.items()
            if len(curve) == 1
            for a in curve.values()
        ]
        title = "Accuracy on changed test images (dashed: unchanged images)"
        figure.suptitle("; ".join([title, *single]))
    return figure
