"""Data sets: every published form gives the same arrays; damaged and hostile files one line."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import json
import lzma
import pickle
import struct
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from fsim.errors import ConfigError
from fsim.nas import data_files, fetch, published
from fsim.nas.data import Dataset, load_data, where

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def nowhere_else(tmp_path, monkeypatch):
    """No data of this machine: an empty cache, no $FSIM_DATA, no checkout beside."""
    monkeypatch.setenv("FSIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FSIM_DATA", raising=False)
    monkeypatch.setattr("fsim.nas.places._checkout_data", list)


# --- digits ---


def test_digits_are_those_of_scikit_learn_split_once():
    datasets = pytest.importorskip("sklearn.datasets")
    bunch = datasets.load_digits()
    expected = np.concatenate([bunch.images.reshape(-1, 64), bunch.target[:, None]], axis=1)
    parts = [load_data("digits", split) for split in ("train", "test")]
    rows = [np.concatenate([p.images.reshape(-1, 64), p.labels[:, None]], axis=1) for p in parts]
    got = np.concatenate(rows)
    assert_array_equal(got[np.lexsort(got.T)], expected[np.lexsort(expected.T)])
    assert [p.images.shape for p in parts] == [(1258, 1, 8, 8), (539, 1, 8, 8)]
    assert all(p.images.dtype == np.uint8 and p.labels.dtype == np.int64 for p in parts)
    per_class = np.bincount(bunch.target)
    assert_array_equal(np.bincount(parts[1].labels), np.round(0.3 * per_class).astype(int))


def test_digits_split_never_changes():
    """A figure measured on the test split stays comparable; hash of the first version."""
    assert load_data("digits").sha256 == (
        "8db857dc9e538c2cb377fc5b661b31b2946a96720bc796e86bc68613965d8b31"
    )


def test_limit_takes_the_first_images():
    whole, part = load_data("digits"), load_data("digits", limit=20)
    assert_array_equal(part.images, whole.images[:20])
    assert_array_equal(part.labels, whole.labels[:20])
    assert part.sha256 != whole.sha256 and part.num_classes == 10
    assert len(load_data("digits", limit=10**6)) == len(whole)


# --- CIFAR-10: the official binary and pickle versions and arrays, all of made-up images ---

BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


def made_up(seed, n=7):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8), rng.integers(0, 10, n).tolist()


def binary(images, labels):
    return b"".join(bytes([label]) + image.tobytes() for image, label in zip(images, labels))


def python2_pickle(images, labels):
    """The opcodes that Python 2 wrote the official batches with (protocol 2, str as bytes)."""
    text = lambda s: b"U" + bytes([len(s)]) + s  # noqa: E731
    raw = images.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R("
        b"K\x01M"
        + struct.pack("<H", len(images))
        + b"M\x00\x0c\x86cnumpy\ndtype\n"
        + text(b"u1")
        + b"K\x00K\x01\x87R(K\x03"
        + text(b"|")
        + b"NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<I", len(raw)) + raw + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    entries = text(b"batch_label") + text(b"made up") + text(b"labels") + numbers
    return b"\x80\x02}(" + entries + text(b"data") + array + b"u."


def write_binary(folder):
    for seed, name in enumerate(BATCHES):
        (folder / f"{name}.bin").write_bytes(binary(*made_up(seed)))


def write_python2(folder):
    for seed, name in enumerate(BATCHES):
        (folder / name).write_bytes(python2_pickle(*made_up(seed)))


def write_python3(folder):
    for seed, name in enumerate(BATCHES):
        images, labels = made_up(seed)
        content = {b"data": images.reshape(-1, 3072), b"labels": labels}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2 + seed % 3))


def write_npy(folder, pack=False):
    for seed, name in enumerate(["train_1", "train_2", "train_3", "train_4", "train_5", "test"]):
        images, labels = made_up(seed)
        np.save(folder / f"{name}_labels.npy", np.array(labels, np.uint8))
        buffer = io.BytesIO()
        np.save(buffer, images)
        if pack:
            (folder / f"{name}_images.npy.xz").write_bytes(lzma.compress(buffer.getvalue()))
        else:
            (folder / f"{name}_images.npy").write_bytes(buffer.getvalue())


def write_xz(folder):
    write_npy(folder, pack=True)


def expect_made_up(data, seeds):
    parts = [made_up(seed) for seed in seeds]
    assert_array_equal(data.images, np.concatenate([images for images, _ in parts]))
    assert_array_equal(data.labels, np.concatenate([labels for _, labels in parts]))
    assert data.images.dtype == np.uint8 and data.labels.dtype == np.int64


@pytest.mark.parametrize(
    "write, sub",
    [
        (write_binary, "cifar-10-batches-bin"),
        (write_binary, "."),
        (write_python2, "cifar-10-batches-py"),
        (write_python3, "cifar10"),
        (write_npy, "cifar10"),
        (write_xz, "cifar10"),
    ],
)
def test_every_form_of_cifar10_gives_the_same_images(tmp_path, write, sub):
    folder = tmp_path / "here" / sub
    folder.mkdir(parents=True)
    write(folder)
    test = load_data("cifar10", "test", tmp_path / "here")
    expect_made_up(test, [5])
    expect_made_up(load_data("cifar10", "train", tmp_path / "here"), range(5))
    limited = load_data("cifar10", "train", tmp_path / "here", limit=10)
    assert_array_equal(limited.images, np.concatenate([made_up(0)[0], made_up(1)[0][:3]]))
    reference = tmp_path / "reference"
    reference.mkdir()
    write_binary(reference)
    assert test.sha256 == load_data("cifar10", "test", reference).sha256


def test_data_are_searched_in_data_dir_then_fsim_data_then_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FSIM_DATA", str(tmp_path / "env"))
    assert where("cifar10", "test") is None
    for seed, place in ((1, tmp_path / "cache"), (2, tmp_path / "env"), (3, tmp_path / "given")):
        (place / "cifar10").mkdir(parents=True)
        (place / "cifar10" / "test_batch.bin").write_bytes(binary(*made_up(seed)))
        given = place if place.name == "given" else None
        data = load_data("cifar10", data_dir=given)
        expect_made_up(data, [seed])
        assert data.source == where("cifar10", "test", given) == str(place / "cifar10")


def test_nothing_found_names_every_place_and_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("FSIM_DATA", str(tmp_path / "env"))
    (tmp_path / "given").mkdir()
    for name in ("cifar10", "fashion-mnist"):
        with pytest.raises(ConfigError) as caught:
            load_data(name, data_dir=tmp_path / "given")
        text = str(caught.value)
        for part in ("given", "env", "cache", f"fsim data fetch {name}", "--data-dir"):
            assert part in text
        assert "\n" not in text


def test_a_missing_batch_is_named(tmp_path):
    write_binary(tmp_path)
    (tmp_path / "data_batch_4.bin").unlink()
    with pytest.raises(ConfigError, match=r"data_batch_4\.bin is missing"):
        load_data("cifar10", "train", tmp_path)


def test_decompressed_copy_is_used_and_renewed_when_damaged(tmp_path, monkeypatch):
    folder = tmp_path / "here" / "cifar10"
    folder.mkdir(parents=True)
    write_xz(folder)
    expect_made_up(load_data("cifar10", data_dir=tmp_path / "here"), [5])
    (copy,) = (tmp_path / "cache" / "arrays").iterdir()
    assert_array_equal(np.load(copy), made_up(5)[0])

    with monkeypatch.context() as patch:
        patch.setattr(data_files.lzma, "open", None)  # decompressing again would fail
        expect_made_up(load_data("cifar10", data_dir=tmp_path / "here"), [5])

    copy.write_bytes(copy.read_bytes()[:-100])
    expect_made_up(load_data("cifar10", data_dir=tmp_path / "here"), [5])
    assert_array_equal(np.load(copy), made_up(5)[0])

    images, _ = made_up(9)  # another file under the same name: no stale copy
    buffer = io.BytesIO()
    np.save(buffer, images)
    (folder / "test_images.npy.xz").write_bytes(lzma.compress(buffer.getvalue()))
    assert_array_equal(load_data("cifar10", data_dir=tmp_path / "here").images, images)


def test_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    write_xz(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("FSIM_CACHE", str(tmp_path / "file"))
    expect_made_up(load_data("cifar10", data_dir=tmp_path), [5])
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.skipif(not (SHARED / "cifar10").is_dir(), reason="no ../shared/data")
def test_real_cifar10_test_images(tmp_path):
    data = load_data("cifar10", data_dir=SHARED)
    assert data.images.shape == (10_000, 3, 32, 32)
    assert_array_equal(np.bincount(data.labels), [1000] * 10)
    with lzma.open(SHARED / "cifar10" / "test_images.npy.xz") as file:
        assert_array_equal(data.images[:3], np.load(file)[:3])
    assert data.labels[:5].tolist() == [3, 8, 8, 0, 6]  # cat, ship, ship, plane, frog


# --- hostile and damaged CIFAR files ---


class Payload:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def evil(tmp_path):
    """Pickles that would do something, or that are not what they should be."""
    images, labels = made_up(0)
    rows = images.reshape(-1, 3072)
    return {
        "mkdir": Payload(Path.mkdir, tmp_path / "ran"),
        "eval": Payload(eval, f"__import__('os').mkdir({str(tmp_path / 'ran')!r})"),
        "getattr": Payload(getattr, "a", "upper"),
        "nested": {b"data": rows, b"labels": labels, b"x": Payload(np.load, "f")},
        "list": [1, 2],
        "empty": {},
        "no array": {b"data": b"abc", b"labels": labels},
        "floats": {b"data": rows.astype(np.float32), b"labels": labels},
        "objects": {b"data": np.array([None] * 3072, object)[None], b"labels": [0]},
        "narrow": {b"data": rows[:, :100].copy(), b"labels": labels},
        "Fortran": {b"data": np.asfortranarray(rows), b"labels": labels},
        "few labels": {b"data": rows, b"labels": labels[:-1]},
        "label 10": {b"data": rows, b"labels": [10] * len(labels)},
        "label text": {b"data": rows, b"labels": ["3"] * len(labels)},
    }


def test_pickle_that_is_more_than_data_is_refused_and_not_run(tmp_path):
    for name, content in evil(tmp_path).items():
        (tmp_path / "test_batch").write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(ConfigError, match="test_batch"):
            load_data("cifar10", data_dir=tmp_path)
        assert not (tmp_path / "ran").exists(), name


@pytest.mark.parametrize(
    "name",
    [
        b"numpy\nndarray",
        b"numpy\ndtype",
        b"_codecs\nencode",
        b"numpy.core.multiarray\n_reconstruct",
    ],
)
def test_pickle_cannot_change_what_reads_it(tmp_path, name):
    """Opcode BUILD on the stand-in itself, with attributes to set: (None, {"state": 1})."""
    (tmp_path / "test_batch").write_bytes(b"\x80\x02c" + name + b"\nN}U\x05stateK\x01s\x86b.")
    with pytest.raises(ConfigError):
        load_data("cifar10", data_dir=tmp_path)
    (tmp_path / "test_batch").write_bytes(python2_pickle(*made_up(5)))
    expect_made_up(load_data("cifar10", data_dir=tmp_path), [5])
    stand_ins = data_files._DataUnpickler._ADMITTED.values()
    assert all(stand_in.state is None for stand_in in stand_ins)


def test_claimed_shape_must_match_the_bytes(tmp_path):
    """2^62 rows of 3072 pixels: refused before any memory is taken."""
    whole = python2_pickle(*made_up(0))
    shape = b"M\x07\x00M\x00\x0c\x86"
    assert whole.count(shape) == 1
    huge = whole.replace(shape, b"\x8a\x08" + struct.pack("<q", 1 << 62) + b"M\x00\x0c\x86")
    (tmp_path / "test_batch").write_bytes(huge)
    with pytest.raises(ConfigError, match="as many bytes"):
        load_data("cifar10", data_dir=tmp_path)


@pytest.mark.parametrize(
    "content, part",
    [
        (b"", "0 bytes"),
        (b"\0" * 3072, "3072 bytes"),
        (b"\x0a" + b"\0" * 3072, "labels must be 0..9"),
    ],
)
def test_damaged_binary_batch(tmp_path, content, part):
    (tmp_path / "test_batch.bin").write_bytes(content)
    with pytest.raises(ConfigError, match=part):
        load_data("cifar10", data_dir=tmp_path)


# --- Fashion-MNIST ---


def idx(array):
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.tobytes()


def write_fashion(folder, pack):
    folder.mkdir(parents=True)
    for seed, stem in enumerate(("train", "t10k")):
        rng = np.random.default_rng(seed)
        images = rng.integers(0, 256, (6, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, 6, dtype=np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = idx(array)
            path = folder / f"{stem}-{name}-ubyte"
            if pack:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(data))
            else:
                path.write_bytes(data)


@pytest.mark.parametrize("sub, pack", [("fashion-mnist", True), ("FashionMNIST/raw", False)])
def test_fashion_mnist(tmp_path, sub, pack):
    write_fashion(tmp_path / sub, pack)
    for seed, split in enumerate(("train", "test")):
        rng = np.random.default_rng(seed)
        data = load_data("fashion-mnist", split, tmp_path)
        assert_array_equal(data.images[:, 0], rng.integers(0, 256, (6, 28, 28), dtype=np.uint8))
        assert_array_equal(data.labels, rng.integers(0, 10, 6, dtype=np.uint8))
        assert data.images.shape == (6, 1, 28, 28)
        part = load_data("fashion-mnist", split, tmp_path, limit=4)
        assert_array_equal(part.images, data.images[:4])


def test_files_of_mnist_are_not_taken_for_fashion_mnist(tmp_path):
    """Both data sets use the same file names."""
    write_fashion(tmp_path / "mnist", pack=True)
    with pytest.raises(ConfigError, match="not found"):
        load_data("fashion-mnist", data_dir=tmp_path / "mnist")
    (tmp_path / "mnist").rename(tmp_path / "my-fashion")
    assert len(load_data("fashion-mnist", data_dir=tmp_path / "my-fashion")) == 6


GOOD_IDX = idx(np.zeros((2, 28, 28), np.uint8))


@pytest.mark.parametrize(
    "content, part",
    [
        (b"", "truncated"),
        (GOOD_IDX[:-1], "truncated"),
        (GOOD_IDX + b"\0", "got more"),
        (b"\1" + GOOD_IDX[1:], "must start with"),
        (GOOD_IDX[:2] + b"\x0d" + GOOD_IDX[3:], "must start with"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "at most"),
        (idx(np.zeros((2, 28, 29), np.uint8)), "28, 28"),
    ],
)
def test_damaged_or_hostile_idx(tmp_path, content, part):
    write_fashion(tmp_path / "fashion-mnist", pack=False)
    (tmp_path / "fashion-mnist" / "t10k-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ConfigError, match=part):
        load_data("fashion-mnist", data_dir=tmp_path)


def test_truncated_gzip_and_xz(tmp_path):
    write_fashion(tmp_path / "fashion-mnist", pack=True)
    path = tmp_path / "fashion-mnist" / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ConfigError, match="t10k-images"):
        load_data("fashion-mnist", data_dir=tmp_path)
    write_xz(tmp_path)
    path = tmp_path / "test_images.npy.xz"
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(ConfigError, match="test_images"):
        load_data("cifar10", data_dir=tmp_path)


# --- the user's npz ---


def images_of(n=5):
    return np.random.default_rng(1).integers(0, 256, (n, 2, 6, 4), dtype=np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_without_splits_is_the_same_for_both(tmp_path, save):
    save(tmp_path / "d.npz", images=images_of(), labels=np.array([3, 0, 1, 1, 2], np.int16))
    for split in ("train", "test"):
        data = load_data(tmp_path / "d.npz", split)
        assert_array_equal(data.images, images_of())
        assert_array_equal(data.labels, [3, 0, 1, 1, 2])
        assert (data.split, data.num_classes, data.labels.dtype) == ("all", 4, np.int64)
    part = load_data(str(tmp_path / "d.npz"), limit=2)
    assert_array_equal(part.images, images_of()[:2])
    assert_array_equal(part.labels, [3, 0])


def test_npz_with_splits_and_float_gray_images(tmp_path):
    rng = np.random.default_rng(2)
    train, test = rng.normal(size=(4, 5, 5)).astype(">f8"), rng.normal(size=(3, 5, 5))
    np.savez(
        tmp_path / "d.npz",
        train_images=train,
        train_labels=[0, 1, 0, 1],
        test_images=test,
        test_labels=[1, 1, 0],
    )
    for split, images in (("train", train), ("test", test)):
        data = load_data(tmp_path / "d.npz", split)
        assert_array_equal(data.images, images.astype(np.float32)[:, None])
        assert data.images.dtype == np.float32 and data.split == split


class Unpickled:
    def __reduce__(self):
        return Path.mkdir, (Path("ran_by_npz"),)


L = np.arange(5)
BAD_NPZ = {
    "no labels": ({"images": images_of()}, "'labels'"),
    "no images": ({"labels": L}, "'images'"),
    "other split": ({"train_images": images_of(), "train_labels": L}, "test_images"),
    "objects": ({"images": np.array([Unpickled()], object), "labels": L}, "plain numbers"),
    "text": ({"images": np.array(["a"] * 5), "labels": L}, "plain numbers"),
    "complex": ({"images": images_of() * 1j, "labels": L}, "plain numbers"),
    "int64": ({"images": images_of().astype(int), "labels": L}, "uint8 or float"),
    "flat": ({"images": images_of().reshape(5, -1), "labels": L}, "n, c, h, w"),
    "none": ({"images": images_of(0), "labels": L[:0]}, "none of them 0"),
    "channels last": ({"images": np.zeros((5, 8, 8, 3), np.uint8), "labels": L}, "transpose"),
    "Fortran": ({"images": np.asfortranarray(images_of()), "labels": L}, "C order"),
    "scalar": ({"images": images_of(), "labels": np.int64(3)}, "single number"),
    "nan": ({"images": np.full((5, 1, 2, 2), np.nan), "labels": L}, "finite"),
    "overflow": ({"images": np.full((5, 1, 2, 2), 1e300), "labels": L}, "finite"),
    "few labels": ({"images": images_of(), "labels": L[:4]}, "one an image"),
    "many labels": ({"images": images_of(), "labels": np.arange(6)}, "one an image"),
    "float labels": ({"images": images_of(), "labels": L * 1.0}, "integers"),
    "negative": ({"images": images_of(), "labels": L - 1}, "labels must be 0"),
    "wild label": ({"images": images_of(), "labels": L + (1 << 60)}, "labels must be 0"),
}


@pytest.mark.parametrize("name", BAD_NPZ)
def test_bad_npz_is_one_config_error(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    content, part = BAD_NPZ[name]
    np.savez(tmp_path / "d.npz", **content)
    with pytest.raises(ConfigError, match=part) as caught:
        load_data(tmp_path / "d.npz")
    assert "d.npz" in str(caught.value)
    assert not (tmp_path / "ran_by_npz").exists()


def npy_header(shape, descr="|u1"):
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text = text.ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    "header, part",
    [
        (npy_header("(1099511627776, 3, 32, 32)"), "at most"),
        (npy_header("(9223372036854775807, 9223372036854775807, 2)"), "at most"),
        (npy_header("(1000000, 3, 32, 32)"), "truncated"),
        (npy_header("(-1, 3, 32, 32)"), "lengths >= 0"),
        (npy_header("(3, 3, 32, 32)", "|O"), "plain numbers"),
        (npy_header("(3, x)"), "readable"),
        (npy_header("(" * 60), "readable"),
        (b"\x93NUMPY\x03\x00" + b"\0" * 100, "format"),
        (b"\x93NUMPY\x01\x00\xff\xff", "readable"),
        (b"", "readable"),
    ],
)
def test_hostile_array_header_in_an_npz(tmp_path, header, part):
    with zipfile.ZipFile(tmp_path / "d.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", header + b"\0" * 10_000)
        archive.writestr("labels.npy", npy_header("(3,)") + b"\0\0\0")
    with pytest.raises(ConfigError, match=part):
        load_data(tmp_path / "d.npz")


def test_limit_reads_only_what_it_needs_of_a_large_npz(tmp_path):
    """The header claims 12 GB; the first two images are there and are all that is asked for."""
    two = np.random.default_rng(3).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("images.npy", npy_header("(4000000, 3, 32, 32)") + two.tobytes())
        archive.writestr("labels.npy", npy_header("(4000000,)") + bytes(4_000_000))
    assert_array_equal(load_data(tmp_path / "d.npz", limit=2).images, two)
    with pytest.raises(ConfigError, match="at most"):
        load_data(tmp_path / "d.npz")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x05\x06" + b"\xff" * 18])
def test_file_that_is_no_npz(tmp_path, content):
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(ConfigError, match=r"d\.npz"):
        load_data(tmp_path / "d.npz")


@pytest.mark.parametrize(
    "arguments",
    [
        ("cifar",),
        ("digits", "validation"),
        ("digits", "test", None, 0),
        ("nothing.npz",),
        ("cifar10", "test", "/nowhere/at/all"),
    ],
)
def test_bad_arguments(arguments):
    with pytest.raises(ConfigError):
        load_data(*arguments)


@pytest.fixture(scope="module")
def good_files(tmp_path_factory):
    """One good file of every format, by the name under which it is read."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images_of(), labels=L)
    images, labels = made_up(0, n=2)
    plain = io.BytesIO()
    np.save(plain, images)
    return tmp_path_factory.mktemp("fuzz"), {
        "d.npz": (buffer.getvalue(), load_data),
        "d.npy": (plain.getvalue(), data_files.read_npy),
        "d.npy.xz": (lzma.compress(plain.getvalue()), data_files.read_npy),
        "d.gz": (gzip.compress(GOOD_IDX), data_files.read_idx),
        "batch": (python2_pickle(images, labels), data_files.read_cifar_pickle),
    }


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(["d.npz", "d.npy", "d.npy.xz", "d.gz", "batch"]),
    edits=st.lists(
        st.tuples(
            st.one_of(st.integers(0, 400), st.integers(-400, -1), st.integers(0, 10**5)),
            st.integers(0, 255),
        ),
        min_size=1,
        max_size=4,
    ),
    cut=st.one_of(st.none(), st.integers(0, 3000)),
)
@pytest.mark.filterwarnings("ignore:Reading `.npy` or `.npz` file required:UserWarning")
def test_damaged_file_gives_arrays_or_a_config_error(good_files, name, edits, cut):
    folder, files = good_files
    content, read = files[name]
    data = bytearray(content)
    for at, value in edits:
        data[at % len(data)] = value
    path = folder / name
    path.write_bytes(bytes(data[:cut]))
    try:
        got = read(path)
    except ConfigError as error:
        assert str(path) in str(error)
        return
    assert isinstance(got, Dataset | np.ndarray | tuple)


# --- downloads, from a server on this machine ---


@pytest.fixture
def server():
    """Serves `server.files` (path -> bytes) over HTTP and counts requests."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked += 1
            content = self.server.files.get(self.path)
            self.send_response(200 if content is not None else 404)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_):
            """Keep the test output clean."""

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.files, httpd.asked = {}, 0
    httpd.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    thread = threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def tar_of(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content or b""))
    return buffer.getvalue()


def table_for(server, content, name="c.tar.gz", members=(), limit=10**6):
    server.files[f"/{name}"] = content
    md5 = hashlib.md5(content).hexdigest()
    return {"cifar10": (fetch.Download(f"{server.url}/{name}", md5, limit, tuple(members)),)}


def test_fetched_archive_can_be_loaded_and_is_not_fetched_twice(server, tmp_path):
    files = {f"cifar-10-batches-bin/{n}.bin": binary(*made_up(s)) for s, n in enumerate(BATCHES)}
    content = tar_of(files | {"../../escaped": b"x", "cifar-10-batches-bin/readme.html": b"y"})
    downloads = table_for(server, content, members=[(n, len(c)) for n, c in files.items()])
    seen = []
    written = fetch.fetch("cifar10", progress=lambda *args: seen.append(args), downloads=downloads)
    folder = tmp_path / "cache" / "cifar10"
    assert sorted(written) == sorted(folder.iterdir())
    assert {path.name for path in written} == {f"{name}.bin" for name in BATCHES}
    assert seen[-1] == ("c.tar.gz", len(content), len(content))
    expect_made_up(load_data("cifar10", "train"), range(5))
    expect_made_up(load_data("cifar10", "test"), [5])
    assert fetch.fetch("cifar10", downloads=downloads) == []
    assert server.asked == 1
    assert not (tmp_path / "escaped").exists() and not (tmp_path / "cache" / "escaped").exists()


def test_fetched_single_file_is_kept_byte_for_byte(server, tmp_path):
    downloads = table_for(server, b"content", name="t10k.gz")
    (path,) = fetch.fetch("cifar10", tmp_path / "there", downloads=downloads)
    assert path == tmp_path / "there" / "cifar10" / "t10k.gz"
    assert path.read_bytes() == b"content"


def failing_downloads(server):
    members = [("a/x.bin", 5)]
    good = table_for(server, tar_of({"a/x.bin": b"12345"}), members=members)["cifar10"][0]
    url, md5 = good.url, good.md5
    other = lambda content, name: table_for(server, content, name, members)["cifar10"][0]  # noqa: E731
    return {
        "MD5 must be": fetch.Download(url, "0" * 32, 10**6, tuple(members)),
        "at most 20 bytes": fetch.Download(url, md5, 20, tuple(members)),
        "Not Found": fetch.Download(f"{server.url}/none.tar.gz", md5, 10**6, tuple(members)),
        "refused": fetch.Download("http://127.0.0.1:9/x.tar.gz", md5, 10**6, tuple(members)),
        "5 bytes, got 4": other(tar_of({"a/x.bin": b"1234"}), "short.tar.gz"),
        "got 0 bytes": other(tar_of({"a/x.bin": None}), "link.tar.gz"),
        "cannot be unpacked": other(tar_of({"a/y.bin": b"12345"}), "other.tar.gz"),
        "unpacked: ": other(b"no archive at all", "none.tar.gz2"),
    }


def test_failed_download_is_one_line_and_leaves_nothing(server, tmp_path):
    for part, download in failing_downloads(server).items():
        with pytest.raises(ConfigError, match=part) as caught:
            fetch.fetch("cifar10", tmp_path, downloads={"cifar10": (download,)})
        assert "\n" not in str(caught.value)
        assert list((tmp_path / "cifar10").iterdir()) == []


def test_only_named_data_sets_can_be_fetched(tmp_path):
    with pytest.raises(ConfigError, match="fashion-mnist"):
        fetch.fetch("imagenet", tmp_path)
    assert set(fetch.DOWNLOADS) == set(published.PUBLISHED)


def test_official_downloads_unpack_to_what_the_loader_reads():
    """The names that fetch writes are names that the loader looks for, both splits."""
    for name, downloads in fetch.DOWNLOADS.items():
        names = {p.name for d in downloads for p in fetch._targets(d, Path("x"))}
        forms = published.PUBLISHED[name].forms
        assert name in published.PUBLISHED[name].folders
        for split in ("train", "test"):
            assert any(set(form.files(split)) & names for form in forms)


# --- fsim data ---


def run(*arguments):
    from click.testing import CliRunner

    from fsim.cli import main

    return CliRunner().invoke(main, ["data", *arguments])


def test_data_list_tells_what_is_where(tmp_path):
    (tmp_path / "here" / "cifar10").mkdir(parents=True)
    (tmp_path / "here" / "cifar10" / "test_batch.bin").write_bytes(binary(*made_up(0)))
    result = run("list", "--json", "--data-dir", str(tmp_path / "here"))
    assert result.exit_code == 0
    assert json.loads(result.stdout) == [
        {"name": "digits", "train": "the package", "test": "the package"},
        {"name": "cifar10", "train": None, "test": str(tmp_path / "here" / "cifar10")},
        {"name": "fashion-mnist", "train": None, "test": None},
    ]
    assert "not here" in run("list").stdout


def test_data_fetch_downloads_once_and_fails_in_one_line(server, monkeypatch, tmp_path):
    downloads = table_for(server, b"content", name="t.gz")
    monkeypatch.setitem(fetch.DOWNLOADS, "cifar10", downloads["cifar10"])
    first = run("fetch", "cifar10", "--data-dir", str(tmp_path))
    assert first.exit_code == 0
    assert first.stdout == f"{tmp_path / 'cifar10' / 't.gz'}\n"
    again = run("fetch", "cifar10", "--data-dir", str(tmp_path))
    assert (again.exit_code, again.stdout) == (0, "") and server.asked == 1
    bad = run("fetch", "mnist")
    assert bad.exit_code == 2 and bad.stderr.count("\n") == 1 and "fashion-mnist" in bad.stderr
