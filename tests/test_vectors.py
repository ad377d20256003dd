"""Reading vector files: what is valid is read whole, everything else is one clear error."""

import io
import json
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsim.accel_models.accel import Accel
from fsim.errors import ConfigError
from fsim.simulator.npz import read_npz
from fsim.simulator.vectors import Vector, read_vectors, vector_table
from fsim.types import FOREVER, LEVEL, STATE


def content() -> tuple[dict, dict]:
    """(meta, arrays) of a small valid file: two cases, three vectors, one trace."""
    meta = {
        "design": "st_os_2x3",
        "dataflow": "OS",
        "rows": 2,
        "cols": 3,
        "sites": ["s1_x", "mac_out", "mul"],
        "site_bits": [8, 32, 16],
        "kinds": ["flip", "sa0", "sa1"],
        "cases": [{"M": 2, "K": 1, "N": 3}, {"M": 1, "K": 2, "N": 1, "T": 9}],
        "n_vectors": 3,
    }
    arrays = {
        "A0": np.array([[1], [-2]], np.int8),
        "B0": np.array([[3, 4, -128]], np.int8),
        "C0": np.array([[3, 4, -128], [-6, -8, 256]], np.int32),
        "T0": np.array(8),
        "trace_golden0": np.arange(48, dtype=np.int32).reshape(8, 6),
        "A1": np.array([[5, 6]], np.int8),
        "B1": np.array([[7], [8]], np.int8),
        "C1": np.array([[83]], np.int32),
        "D1": np.array([[0]], np.int32),
        "T1": np.array(9),
        "f_case": np.array([0, 1, 0], np.int32),
        "f_kind": np.array([0, 2, 1], np.int32),
        "f_site": np.array([1, 0, 2], np.int32),
        "f_row": np.array([1, 0, 0], np.int32),
        "f_col": np.array([2, 1, 0], np.int32),
        "f_bit": np.array([31, 7, 15], np.int32),
        "f_cycle": np.array([7, -1, -1], np.int32),
        "f_off": np.array([0, 6, 7], np.int64),
        "f_out": np.array([3, 4, -128, -6, -8, 99, 83, 3, 4, -128, -6, -8, 256], np.int32),
        "f_masked": np.array([False, True, True]),
        "trace_idx": np.array([2], np.int32),
        "trace0": np.ones((8, 6), np.int32),
    }
    return meta, arrays


def write(path, meta, arrays, **options):
    np.savez_compressed(path, meta=json.dumps(meta), **arrays, **options)
    return path


def test_a_valid_file_is_read_whole(tmp_path):
    meta, arrays = content()
    file = read_vectors(write(tmp_path / "v.npz", meta, arrays))
    assert (file.design, file.family, file.dataflow) == ("st_os_2x3", "pipelined", "os")
    assert (file.rows, file.cols) == (2, 3)
    assert file.site_bits == {"s1_x": 8, "mac_out": 32, "mul": 16}
    for c, case in enumerate(file.cases):
        for name, values in (("A", case.a), ("B", case.b), ("C", case.out)):
            np.testing.assert_array_equal(values, arrays[f"{name}{c}"])
            assert values.dtype == np.int64
        assert case.cycles == arrays[f"T{c}"]
    np.testing.assert_array_equal(file.cases[0].trace, arrays["trace_golden0"])
    assert file.cases[0].d is None and file.cases[1].trace is None
    np.testing.assert_array_equal(file.cases[1].d, [[0]])
    assert [str(vector) for vector in file.vectors] == [
        "flip of bit 31 of mac_out(1,2), cycle 7",
        "sa1 of bit 7 of s1_x(0,1), from reset on",
        "sa0 of bit 15 of mul(0,0), from reset on",
    ]
    assert [vector.masked for vector in file.vectors] == [False, True, True]
    outs = [[[3, 4, -128], [-6, -8, 99]], [[83]], arrays["C0"]]
    for vector, out in zip(file.vectors, outs, strict=True):
        np.testing.assert_array_equal(vector.out, out)
    assert file.vectors[0].trace is None
    np.testing.assert_array_equal(file.vectors[2].trace, np.ones((8, 6)))


def test_order_and_byte_order_of_arrays_do_not_matter(tmp_path):
    meta, arrays = content()
    arrays["C0"] = np.asfortranarray(arrays["C0"].astype(">i4"))
    arrays["trace_golden0"] = np.asfortranarray(arrays["trace_golden0"])
    np.savez(tmp_path / "v.npz", meta=json.dumps(meta), **arrays)
    case = read_vectors(tmp_path / "v.npz").cases[0]
    np.testing.assert_array_equal(case.out, arrays["C0"])
    np.testing.assert_array_equal(case.trace, arrays["trace_golden0"])


@pytest.mark.parametrize("key", sorted(content()[1]))
def test_a_missing_key_is_named(tmp_path, key):
    meta, arrays = content()
    del arrays[key]
    path = write(tmp_path / "v.npz", meta, arrays)
    if key in ("D1", "trace_golden0", "trace_idx"):  # optional
        file = read_vectors(path)
        assert file.cases[1].d is None or key != "D1"
        return
    with pytest.raises(ConfigError, match=rf"the key '{key}' \({path}: {key}\)"):
        read_vectors(path)


@pytest.mark.parametrize("key", sorted(content()[1]))
@pytest.mark.parametrize("damage", ["dtype", "shape"])
def test_a_wrong_type_or_shape_is_named(tmp_path, key, damage):
    meta, arrays = content()
    array = arrays[key]
    arrays[key] = array.astype(np.float64) if damage == "dtype" else array[..., None]
    path = write(tmp_path / "v.npz", meta, arrays)
    words = "must hold (integers|booleans), got float64" if damage == "dtype" else "must have shape"
    with pytest.raises(ConfigError, match=rf"^{key} {words}.* \({path}: {key}\)$"):
        read_vectors(path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("f_case", 2, "0 to 1, got 2"),
        ("f_kind", -1, "0 to 2, got -1"),
        ("f_site", 3, "0 to 2, got 3"),
        ("f_row", 2, "0 to 1, got 2"),
        ("f_col", 3, "0 to 2, got 3"),
        ("f_bit", 32, "0 to 31, got 32"),
        ("f_cycle", 8, "0 to 7, got 8"),
        ("f_cycle", -1, "0 to 7, got -1"),
        ("f_off", 8, "0 to 7, got 8"),
        ("f_off", -1, "0 to 7, got -1"),
    ],
)
def test_a_value_out_of_range_is_named(tmp_path, key, value, words):
    meta, arrays = content()
    arrays[key][0] = value
    path = write(tmp_path / "v.npz", meta, arrays)
    with pytest.raises(ConfigError, match=rf"{key}\[0\] must be {words} .*v.npz: {key}"):
        read_vectors(path)


@pytest.mark.parametrize("value", [3, -1])
def test_a_trace_of_no_vector_is_refused(tmp_path, value):
    meta, arrays = content()
    arrays["trace_idx"][0] = value
    with pytest.raises(ConfigError, match="trace_idx.*must be 0 to 2"):
        read_vectors(write(tmp_path / "v.npz", meta, arrays))


@pytest.mark.parametrize("columns", [1, 5, 7])
def test_a_trace_has_a_column_for_each_port(tmp_path, columns):
    meta, arrays = content()
    arrays["trace0"] = np.ones((8, columns), np.int32)
    with pytest.raises(ConfigError, match=f"trace0 must have 3 or 6 columns, got {columns}"):
        read_vectors(write(tmp_path / "v.npz", meta, arrays))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"design": 5}, "design must be text"),
        ({"dataflow": "rs"}, "dataflow must be one of OS, WS, IS, DC, NVDLA, got 'rs'"),
        ({"rows": 0}, "rows must be an integer of 1 to 1024, got 0"),
        ({"rows": True}, "rows must be an integer"),
        ({"cols": 10**30}, "cols must be an integer"),
        ({"sites": []}, "sites must be a list of names"),
        ({"sites": ["s1_x", "s1_x", "mul"]}, "each site once"),
        ({"site_bits": [8, 32]}, "3 sites and 2 site_bits"),
        ({"site_bits": [8, 0, 16]}, "site_bits must be an integer of 1 to 64"),
        ({"site_bits": None}, "site_bits must be a list"),
        ({"kinds": ["flip", "sa0", "melted"]}, "kinds must be of flip, sa0, sa1, got 'melted'"),
        ({"cases": []}, "at least one case"),
        ({"cases": [[2, 1, 3]]}, r"cases\[0\] must be an object"),
        ({"cases": [{"M": 2, "K": 1}]}, r"cases\[0\].N must be an integer"),
        ({"cases": [{"M": 2, "K": 1, "N": 3, "T": 7}]}, "T must equal T0 = 8, got 7"),
        ({"n_vectors": 10**9}, "n_vectors must be an integer of 0 to 200000"),
        ({"n_vectors": 4}, r"f_case must have shape \(4\)"),
    ],
)
def test_a_wrong_meta_field_is_named(tmp_path, change, words):
    meta, arrays = content()
    path = write(tmp_path / "v.npz", meta | change, arrays)
    with pytest.raises(ConfigError, match=words) as caught:
        read_vectors(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, "\ud800"])
def test_meta_that_is_no_json_object_is_refused(tmp_path, text):
    arrays = content()[1]
    np.savez_compressed(tmp_path / "v.npz", meta=np.array(text), **arrays)
    with pytest.raises(ConfigError, match="meta must be"):
        read_vectors(tmp_path / "v.npz")


# Faults as rows -----------------------------------------------------------------------


def vector(kind, site, bit, cycle):
    return Vector(0, kind, site, 1, 0, bit, cycle, np.zeros((1, 1)), False, None)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (("flip", "psum", 5, 7), [2, 1, 0, -1, STATE, 7, 7, -1, 0, 32]),
        (("flip", "mul", 15, 7), [3, 1, 0, -1, LEVEL, 7, 7, -1, 0, 1 << 15]),
        (("sa0", "psum", 31, -1), [2, 1, 0, -1, LEVEL, -1, FOREVER, ~(1 << 31), 0, 0]),
        (("sa1", "mul", 0, 4), [3, 1, 0, -1, LEVEL, 4, FOREVER, -1, 1, 0]),
    ],
)
def test_a_vector_is_one_row_of_a_fault_table(fault, expected):
    accel = Accel("s", "systolic", "ws", ("ws",), 2, 2)
    np.testing.assert_array_equal(vector_table(accel, vector(*fault)), [expected])


# Hostile and damaged files ---------------------------------------------------------------


def npy(header: bytes, data: bytes = b"", magic: bytes = b"\x93NUMPY\x01\x00") -> bytes:
    return magic + struct.pack("<H", len(header)) + header + data


def zip_of(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


HEADER = b"{'descr': '<i4', 'fortran_order': False, 'shape': (2,), }\n"


def test_the_smallest_npy_member_is_read(tmp_path):
    path = zip_of(tmp_path / "v.npz", [("x.npy", npy(HEADER, struct.pack("<ii", 5, -6)))])
    np.testing.assert_array_equal(read_npz(path)["x"], [5, -6])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "version 1 or 2"),
        (b"\x93NUMPY\x03\x00", "version 1 or 2"),
        (npy(HEADER), "takes 8 bytes, the file holds 0"),
        (npy(HEADER, b"\0" * 9), "takes 8 bytes, the file holds 9"),
        (npy(HEADER.replace(b"2,", b"999999999999, 999999999999")), "takes 39999999999"),
        (npy(HEADER.replace(b"2,", b"0, 99999999999999")), "must state descr"),
        (npy(HEADER.replace(b"2,", b"0, " + b"99999999999, " * 6)), "array is too big"),
        (npy(HEADER.replace(b"2,", b"-2, -1"), b"\0" * 8), "must state descr"),
        (npy(HEADER.replace(b"2,", b"1," * 40), b"\0" * 4), "at most 8 dimensions"),
        (npy(HEADER.replace(b"<i4", b"|O"), b"\0" * 16), "must state descr"),
        (npy(HEADER.replace(b"'<i4'", b"[('x', '<i4')]"), b"\0" * 8), "must state descr"),
        (npy(HEADER.replace(b"<i4", b"<i5"), b"\0" * 10), "one of numpy's"),
        (npy(HEADER.replace(b"<i4", b"<U0")), "the file holds 0"),
        (npy(HEADER.replace(b"(2,)", b"__import__('os')"), b"\0" * 8), "must state descr"),
        (npy(b"(" * 1_000, b"\0" * 8), "must state descr"),
        (npy(b" " * 20_000, b"\0" * 8), "at most 1024 bytes"),
    ],
)
def test_a_hostile_array_header_is_refused(tmp_path, data, words):
    path = zip_of(tmp_path / "v.npz", [("x.npy", data)])
    with pytest.raises(ConfigError, match=rf"{words}.*v\.npz: x\)"):
        read_npz(path)


def test_pickled_objects_are_refused(tmp_path):
    np.savez(tmp_path / "v.npz", x=np.array([{}], object), allow_pickle=True)
    with pytest.raises(ConfigError, match=r"must state descr.*v\.npz: x\)"):
        read_npz(tmp_path / "v.npz")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "v.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for i in range(9):
            with archive.open(f"x{i}.npy", "w") as member:
                for _ in range(32):
                    member.write(bytes(2**20))
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match=f"at most {256 * 2**20} bytes unpacked, got"):
            read_npz(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_member_that_lies_about_its_size_is_refused(tmp_path):
    """The directory says 8 bytes of data, the member unpacks to 4 MiB."""
    big = npy(HEADER, b"\0" * 2**22)
    small = npy(HEADER, b"\0" * 8)
    path = zip_of(tmp_path / "v.npz", [("x.npy", big)], zipfile.ZIP_DEFLATED)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(struct.pack("<I", len(big)), struct.pack("<I", len(small))))
    with pytest.raises(ConfigError, match=r"cannot read the array: .*v\.npz: x\)"):
        read_npz(path)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("readme.txt", b"hello")], "hold .npy members only"),
        ([("x.npy", b""), ("x.npy", b"")], "version 1 or 2|must occur once"),
        ([(f"{i}.npy", b"") for i in range(20_001)], "at most 20000 arrays, got 20001"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_hostile_archive_is_refused(tmp_path, members, words):
    with pytest.raises(ConfigError, match=words):
        read_npz(zip_of(tmp_path / "v.npz", members))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_key_given_twice_is_refused(tmp_path):
    member = ("x.npy", npy(HEADER, b"\0" * 8))
    with pytest.raises(ConfigError, match=r"a key must occur once.*v\.npz: x\)"):
        read_npz(zip_of(tmp_path / "v.npz", [member, member]))


def test_a_directory_that_would_fill_the_memory_is_refused(tmp_path):
    """The end record claims 4 GB of directory; nothing of that size is read."""
    path = zip_of(tmp_path / "v.npz", [("x.npy", npy(HEADER, b"\0" * 8))])
    raw = bytearray(path.read_bytes())
    struct.pack_into("<I", raw, raw.rfind(b"PK\x05\x06") + 12, 0xFFFFFFF0)
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match="bytes of zip directory, got 4294967280"):
        read_npz(path)


def test_a_zip64_directory_is_refused(tmp_path):
    path = zip_of(tmp_path / "v.npz", [("x.npy", npy(HEADER, b"\0" * 8))])
    raw = path.read_bytes()
    end = raw.rfind(b"PK\x05\x06")
    path.write_bytes(raw[:end] + b"PK\x06\x07" + bytes(16) + raw[end:])
    with pytest.raises(ConfigError, match="got a zip64 directory"):
        read_npz(path)


def test_an_encrypted_array_is_refused(tmp_path):
    path = zip_of(tmp_path / "v.npz", [("x.npy", npy(HEADER, b"\0" * 8))])
    raw = bytearray(path.read_bytes())
    raw[6] |= 1  # flags of the local header, then of the directory
    raw[raw.rfind(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match=r"must not be encrypted .*v\.npz: x\)"):
        read_npz(path)


def test_a_changed_byte_of_an_array_is_found(tmp_path):
    path = zip_of(tmp_path / "v.npz", [("x.npy", npy(HEADER, b"\5" * 8))])
    path.write_bytes(path.read_bytes().replace(b"\5" * 8, b"\5" * 7 + b"\6"))
    with pytest.raises(ConfigError, match=r"Bad CRC-32.*v\.npz: x\)"):
        read_npz(path)


@pytest.mark.parametrize("data", [b"", b"hello", b"PK\x05\x06", b"PK\x05\x06" + b"\xff" * 18])
def test_a_file_that_is_no_archive_is_refused(tmp_path, data):
    (tmp_path / "v.npz").write_bytes(data)
    with pytest.raises(ConfigError, match=r"v\.npz"):
        read_npz(tmp_path / "v.npz")


def test_a_missing_file_or_a_folder_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.npz"):
        with pytest.raises(ConfigError, match="regular file that exists"):
            read_npz(path)


def test_a_file_beyond_the_limit_is_refused(tmp_path):
    path = zip_of(tmp_path / "v.npz", [("x.npy", npy(HEADER, b"\0" * 8))])
    with pytest.raises(ConfigError, match="must take at most 100 bytes, got"):
        read_npz(path, max_bytes=100)


def valid_bytes() -> bytes:
    meta, arrays = content()
    buffer = io.BytesIO()
    np.savez(buffer, meta=json.dumps(meta), **arrays)
    return buffer.getvalue()


VALID = valid_bytes()


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=4
    ),
    length=st.one_of(st.just(len(VALID)), st.integers(0, len(VALID))),
)
def test_a_damaged_file_is_read_or_refused_and_nothing_else(tmp_path, changes, length):
    raw = bytearray(VALID)
    for position, byte in changes:
        raw[position] = byte
    (tmp_path / "v.npz").write_bytes(raw[:length])
    try:
        file = read_vectors(tmp_path / "v.npz")
    except ConfigError as error:
        assert "v.npz" in str(error)
    else:
        # zip checks every array's CRC, so what was read is what was written.
        np.testing.assert_array_equal(file.cases[0].out, content()[1]["C0"])
