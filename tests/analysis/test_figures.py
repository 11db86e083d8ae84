"""The figures of a run: which are drawn, and what they show."""

from pathlib import Path

import numpy as np
import pytest

from mnist_sweep.analysis import figures

RNG = np.random.default_rng(0)
LABELS = np.arange(40) % 10
CONFIDENT = np.eye(10, dtype=np.float32)[LABELS] * 0.82 + 0.02
HISTORY = [
    {"train/loss": 1 / i, "val/loss": 1 / i, "train/accuracy": 0.5, "val/accuracy": 0.5}
    for i in (1, 2, 3)
]


def run_figures(selection: str, probabilities: np.ndarray = CONFIDENT) -> dict[str, figures.Figure]:
    return dict(
        figures.run_figures(
            selection,
            history=HISTORY,
            best_epoch=2,
            images=RNG.integers(0, 255, (40, 1, 28, 28), dtype=np.uint8),
            labels=LABELS,
            probabilities=probabilities,
            classes=[str(i) for i in range(10)],
            first_layer=RNG.normal(size=(12, 1, 3, 3)).astype(np.float32),
            data_name="toy",
        )
    )


def texts(figure: figures.Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_selection_is_all_few_or_none() -> None:
    assert run_figures("none") == {}
    assert list(run_figures("few")) == ["learning_curves"]
    everything = {"confusion_matrix", "predictions", "per_class", "calibration", "first_layer"}
    assert everything <= set(run_figures("all"))


def test_most_confident_mistakes_come_first() -> None:
    assert "mistakes" not in run_figures("all")  # all predictions are correct
    wrong = CONFIDENT.copy()
    wrong[3], wrong[5] = 0.01, 0.02
    wrong[3, 8], wrong[5, 2] = 0.91, 0.82
    drawn = run_figures("all", wrong)
    assert texts(drawn["mistakes"]) == ["3 as 8, 91 %", "5 as 2, 82 %"]
    assert drawn["prediction"].axes[1].get_title() == "wrong: predicted 8"
    colours = [text.get_color() for text in drawn["predictions"].axes[0].texts]
    assert [i for i, colour in enumerate(colours) if colour == figures.RED] == [3, 5]


def test_small_confusion_matrix_shows_counts_on_a_fixed_scale() -> None:
    figure = figures.small_confusion_matrix(np.array([[90, 10], [0, 100]]), ["a", "b"])
    (axes,) = figure.axes
    assert texts(figure) == ["90", "10", "100"]
    assert axes.get_title() == "10 of 200 wrong"
    assert axes.images[0].get_clim() == (0, 1)
    assert axes.images[0].get_array()[0, 1] == pytest.approx(0.1**0.5)


def test_small_confusion_matrix_of_many_classes_has_no_counts() -> None:
    figure = figures.small_confusion_matrix(np.eye(62, dtype=int), [f"c{i}" for i in range(62)])
    assert texts(figure) == []
    height, width, channels = figures.to_pixels(figure).shape
    assert height == width < 1000
    assert channels == 3


def test_confusion_matrix_colours_only_errors() -> None:
    matrix = np.array([[900, 3], [1, 800]])
    left, right = figures.confusion_matrix(matrix, ["a", "b"], "t").axes
    shown = left.images[0].get_array()
    assert shown.mask.tolist() == [[True, False], [False, True]]
    assert left.images[0].get_clim() == (0, 3)
    assert "99.7" in [text.get_text() for text in right.texts]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_image_grid_draws_every_image_with_its_caption(channels: int, dtype: type) -> None:
    images = np.full((7, channels, 8, 8), 100, np.uint8).astype(dtype)
    if dtype is np.float32:
        images /= 255
    figure = figures.image_grid(images, [f"image {i}" for i in range(7)], "Seven")
    sheet = np.asarray(figure.axes[0].images[0].get_array())
    assert (sheet.reshape(*sheet.shape[:2], -1)[..., 0] == images[0, 0, 0, 0]).sum() == 7 * 64
    assert texts(figure) == [f"image {i}" for i in range(7)]


def test_names_with_a_dollar_are_drawn_as_they_are(tmp_path: Path) -> None:
    """Otherwise matplotlib would read them as formulas, and fail at those that are none."""
    name = "$\\frac{$"
    for figure in (
        figures.confusion_matrix(np.eye(2, dtype=np.int64), [name, "b"], name),
        figures.error_overlap(np.eye(2), [name, "b"], name),
        figures.image_grid(np.zeros((1, 1, 4, 4), np.uint8), [name], name),
    ):
        figure.savefig(tmp_path / "figure.png")
