"""Sources on small files in their real formats: idx files, EMNIST's zip, folders of images."""

import gzip
import hashlib
import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from mnist_sweep.common.errors import UserError
from mnist_sweep.data import images, sources


def idx(values, code=0x08, dtype="u1"):
    """The bytes of a gzipped idx file."""
    array = np.asarray(values)
    header = bytes([0, 0, code, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return gzip.compress(header + array.astype(dtype).tobytes())


def write(path, content):
    """Write a file and return its md5."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return hashlib.md5(content).hexdigest()


def write_picture(path, size, colour, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


@pytest.fixture
def idx_md5(tmp_path):
    """{file name: md5} of four idx files in the folder `toy`, 20 training and 10 test images."""
    md5 = {}
    for split, n in (("train", 20), ("t10k", 10)):
        images = np.arange(n * 16).reshape(n, 4, 4) % n
        md5[f"{split}-images.gz"] = write(tmp_path / "toy" / f"{split}-images.gz", idx(images))
        labels = [0, 1] * (n // 2)
        md5[f"{split}-labels.gz"] = write(tmp_path / "toy" / f"{split}-labels.gz", idx(labels))
    return md5


def test_stratified_mask_keeps_the_class_proportions():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [600, 300, 101]))
    mask = sources.stratified_mask(labels, 100, seed=1)
    assert mask.sum() == 100
    # exact shares are 59.94, 29.97 and 10.09: the two largest remainders are rounded up
    assert np.bincount(labels[mask]).tolist() == [60, 30, 10]


def test_stratified_mask_depends_only_on_the_seed():
    labels = np.random.default_rng(0).integers(0, 10, 1000)
    mask = sources.stratified_mask(labels, 100, seed=1)
    assert (mask == sources.stratified_mask(labels, 100, seed=1)).all()
    assert (mask != sources.stratified_mask(labels, 100, seed=2)).any()


def test_idx_files_reads_images_and_labels(tmp_path, idx_md5):
    arrays = sources.idx_files(str(tmp_path), folder="toy", md5=idx_md5)
    assert arrays.train_images.shape == (20, 1, 4, 4)
    assert arrays.train_images.reshape(-1)[:20].tolist() == list(range(20))
    assert arrays.test_labels.tolist() == [0, 1] * 5


def test_idx_files_names_a_damaged_file(tmp_path, idx_md5):
    path = tmp_path / "toy" / "train-labels.gz"
    path.write_bytes(path.read_bytes()[:-1])
    actual = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(UserError) as caught:
        sources.idx_files(str(tmp_path), folder="toy", md5=idx_md5)
    for part in (str(path), actual, idx_md5["train-labels.gz"]):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not gzipped",
        idx([[[1, 2], [3, 4]]])[:-9],
        idx([[[1, 2], [3, 4]]])[:12] + b"damaged" + idx([1])[19:],
        gzip.compress(b""),
        gzip.compress(b"\0\0\x08"),
        gzip.compress(b"PNG and so on"),
        idx([1.5], 0x0D, ">f4"),
        gzip.compress(bytes([0, 0, 8, 3]) + b"\x7f\xff\xff\xff" * 3 + bytes(9)),
        gzip.compress(bytes([0, 0, 8, 1]) + b"\xff\xff\xff\xfe" + bytes(9)),
        gzip.compress(bytes([0, 0, 8, 0]) + bytes(1)),
        gzip.compress(bytes([0, 0, 12, 1, 0, 0, 0, 2]) + bytes(7)),
    ],
    ids=range(12),  # gzip writes the time of compression
)
def test_idx_file_of_another_format_is_refused(content):
    with pytest.raises(UserError, match=r"a\.gz: expected a gzipped idx file"):
        sources.parse_idx(content, "a.gz")


def test_qmnist_labels_are_the_first_column(tmp_path):
    images = np.arange(3 * 4 * 4).reshape(3, 4, 4)
    labels = [[7, 4, 2545, 1, 0, 0, 0, 0], [300, 1, 2, 3, 4, 5, 6, 7], [0, 9, 9, 9, 9, 9, 9, 9]]
    files = {"i.gz": idx(images), "l.gz": idx(labels, 0x0C, ">i4")}
    md5 = {name: write(tmp_path / "Q" / name, content) for name, content in files.items()}
    assert sources.parse_idx(files["l.gz"], "l.gz").tolist() == [7, 300, 0]
    arrays = sources.idx_files(
        str(tmp_path), folder="Q", md5={**md5, "ti.gz": write(tmp_path / "Q/ti.gz", idx(images)),
                                        "tl.gz": write(tmp_path / "Q/tl.gz", idx([1, 2, 3]))},
    )  # fmt: skip
    assert arrays.train_images.shape == (3, 1, 4, 4)
    assert arrays.train_labels.tolist() == [7, 300, 0]


@pytest.fixture
def emnist_zip(tmp_path):
    """(root, md5, images) of a zip with 4 + 2 letters: transposed, labels from 1, as published."""
    upright = np.arange(4 * 28 * 28).reshape(4, 28, 28) % 251
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for half, labels in (("train", [1, 26, 3, 1]), ("test", [2, 26])):
            prefix = f"gzip/emnist-letters-{half}"
            transposed = upright[: len(labels)].transpose(0, 2, 1)
            archive.writestr(f"{prefix}-images-idx3-ubyte.gz", idx(transposed))
            archive.writestr(f"{prefix}-labels-idx1-ubyte.gz", idx(labels))
    return tmp_path, write(tmp_path / "EMNIST/raw/gzip.zip", content.getvalue()), upright


def test_emnist_images_are_upright_and_labels_start_at_zero(emnist_zip):
    root, md5, upright = emnist_zip
    arrays = sources.emnist(str(root), split="letters", folder="EMNIST/raw", md5={"gzip.zip": md5})
    assert (arrays.train_images[:, 0] == upright).all()
    assert arrays.train_labels.tolist() == [0, 25, 2, 0]
    assert arrays.test_labels.tolist() == [1, 25]


def test_emnist_names_a_damaged_zip(emnist_zip):
    root, _, _ = emnist_zip
    with pytest.raises(UserError, match=r"gzip\.zip is damaged: md5 \w+, expected 58c8"):
        sources.emnist(str(root), split="letters", folder="EMNIST/raw", md5={"gzip.zip": "58c8"})


def test_folder_holds_out_a_stratified_test_set(tmp_path):
    for name, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 250))):
        for i in range(10):
            write_picture(tmp_path / name / f"{i}.png", (20 + i, 33), colour)
    arrays = sources.image_folder(str(tmp_path), size=32, channels=3)
    assert arrays.classes == ("blue", "red")
    assert arrays.train_images.shape == (16, 3, 32, 32)
    assert arrays.train_images.dtype == np.uint8
    assert np.bincount(arrays.test_labels).tolist() == [2, 2]
    assert arrays.train_images[0, :, 5, 5].tolist() == [0, 0, 250]
    grey = sources.image_folder(str(tmp_path), size=8)
    assert grey.train_images.shape == (16, 1, 8, 8)


def test_folder_with_train_and_test_keeps_that_split(tmp_path):
    for half, n in (("train", 3), ("test", 2)):
        for name in ("a", "b"):
            for i in range(n):
                write_picture(tmp_path / half / name / f"{i}.jpg", (9, 9), 100, "L")
    arrays = sources.image_folder(str(tmp_path))
    assert (arrays.train_labels.tolist(), arrays.test_labels.tolist()) == (
        [0] * 3 + [1] * 3,
        [0, 0, 1, 1],
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 2}, r"channels=2: expected 1 \(grey\) or 3"),
        ({"size": 0}, "size=0: expected 1 to 560 pixels"),
        ({"size": 100_000}, "size=100000: expected 1 to 560"),
        ({"size": "big"}, "size=big: expected 1 to 560"),
        ({"test_fraction": 0}, "test_fraction=0: expected between 0 and 1"),
        ({"test_fraction": float("nan")}, "test_fraction=nan: expected between"),
        ({"test_fraction": "half"}, "test_fraction=half: expected between"),
    ],
)
def test_folder_arguments_out_of_range_are_refused(tmp_path, arguments, message):
    with pytest.raises(UserError, match=f"data.source.{message}"):
        sources.image_folder(str(tmp_path), **arguments)


def test_folder_that_is_none_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for name, reason in (("none", "No such file or directory"), ("file", "Not a directory")):
        with pytest.raises(UserError, match=rf"{name}: expected a folder \({reason}\)"):
            sources.image_folder(str(tmp_path / name))


def test_folder_errors_name_the_folder_or_file(tmp_path):
    with pytest.raises(UserError, match=r"two or more classes, .* found no subfolder"):
        sources.image_folder(str(tmp_path))
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match=r"found a$"):
        sources.image_folder(str(tmp_path))
    write_picture(tmp_path / "a" / "0.png", (9, 9), 1, "L")
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match="b has no images"):
        sources.image_folder(str(tmp_path))
    write(tmp_path / "b" / "broken.png", b"no image")
    with pytest.raises(UserError, match=r"broken\.png: not a readable picture"):
        sources.image_folder(str(tmp_path))


def test_folder_with_train_and_val_is_refused(tmp_path):
    for half in ("train", "val"):
        for name in ("a", "b"):
            write_picture(tmp_path / half / name / "0.png", (9, 9), 100, "L")
    with pytest.raises(UserError, match="has train, val: expected train/ and test/"):
        sources.image_folder(str(tmp_path))


def test_folder_with_too_few_images_for_a_test_set_is_refused(tmp_path):
    for name in ("a", "b"):
        write_picture(tmp_path / name / "0.png", (9, 9), 100, "L")
    with pytest.raises(UserError, match="of 2 images is 0: expected 1 to 0, so that each class"):
        sources.image_folder(str(tmp_path), test_fraction=0.1)


def test_folder_keeps_an_image_of_a_rare_class_for_training(tmp_path):
    for name, n in (("a", 1), ("b", 9)):
        for i in range(n):
            write_picture(tmp_path / name / f"{i}.png", (9, 9), 100, "L")
    arrays = sources.image_folder(str(tmp_path), test_fraction=0.8)
    assert np.bincount(arrays.train_labels).tolist() == [1, 1]
    assert np.bincount(arrays.test_labels).tolist() == [0, 8]


def test_folder_warns_that_colours_are_lost(tmp_path, caplog):
    for name, colour in (("a", (200, 60, 60)), ("b", (90, 91, 92))):
        for i in range(3):
            write_picture(tmp_path / name / f"{i}.png", (9, 9), colour)
    sources.image_folder(str(tmp_path), channels=3, test_fraction=0.5)
    assert caplog.text == ""
    sources.image_folder(str(tmp_path), test_fraction=0.5)
    (line,) = caplog.messages
    assert "3 of the 6 pictures" in line
    assert "data.source.channels=3" in line


def test_folder_of_digits_in_colour_needs_no_warning(tmp_path, caplog):
    for name in "0123456789":
        for i in range(2):
            write_picture(tmp_path / name / f"{i}.png", (9, 9), (200, 60, 60))
    sources.image_folder(str(tmp_path), test_fraction=0.5)
    assert caplog.text == ""


@pytest.mark.parametrize("names", ["0123456789", "ab"])
def test_folder_images_equal_the_pictures_a_model_predicts(tmp_path, names):
    for name in names:
        for i in range(2):
            path = tmp_path / name / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            ink = Image.new("RGBA", (40, 60), (0, 0, 0, 0))
            ink.paste((30, 30, 30, 255), (5, 5, 12, 50))
            ink.save(path)
    arrays = sources.image_folder(str(tmp_path), test_fraction=0.5)
    predicted = images.read_image(path, (1, 28, 28), is_digit=names == "0123456789")
    assert (arrays.train_images == predicted).all()
    # the transparent background differs from the ink
    assert predicted.min() < 50
    assert predicted.max() > 200
