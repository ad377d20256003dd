"""Accelerator descriptions: what a valid one gives, and every way one can be wrong."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fsim.accel_models.accel import Accel, Buffer
from fsim.accel_models.load import (
    OVERRIDES,
    PRESETS,
    description_yaml,
    list_accels,
    load_accel,
    load_description,
    read_description,
)
from fsim.accel_models.schema import NUMBERS, check
from fsim.errors import ConfigError

GOOD = {
    "name": "mine",
    "family": "systolic",
    "about": "an array of ours",
    "dataflow": "os",
    "array": {"rows": 4, "cols": 6},
    "bits": {"operand": 4, "product": 8, "acc": 20},
    "overflow": "saturate",
    "unsigned_acts": True,
    "buffers": {
        "acts": {"kib": 2, "double_buffered": True},
        "weights": {"kib": 0.5},
        "psums": {"kib": 1},
    },
    "sources": {key: "assumed" for key in NUMBERS},
}


def changed(path: str, value: object) -> dict:
    """GOOD with the key at `path` set, or removed where `value` is ...."""
    data = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    place = data
    for parent in parents:
        place = place[parent]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return data


def write(tmp_path, data: object, name: str = "mine.yaml"):
    path = tmp_path / name
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return path


def test_a_file_gives_exactly_what_it_says(tmp_path):
    assert load_accel(write(tmp_path, GOOD)) == Accel(
        name="mine",
        family="systolic",
        dataflow="os",
        dataflows=("ws", "os", "is"),
        rows=4,
        cols=6,
        operand_bits=4,
        product_bits=8,
        acc_bits=20,
        overflow="saturate",
        unsigned_acts=True,
        buffers={
            "acts": Buffer(2.0, True),
            "weights": Buffer(0.5, False),
            "psums": Buffer(1.0, False),
        },
        parameters={"sequencer": 0},
        sources={key: "assumed" for key in NUMBERS},
    )


def test_toml_and_yaml_of_the_same_content_give_the_same_accelerator(tmp_path):
    toml = """
    name = "mine"
    family = "systolic"
    about = "an array of ours"
    dataflow = "os"
    overflow = "saturate"
    unsigned_acts = true
    array = {rows = 4, cols = 6}
    bits = {operand = 4, product = 8, acc = 20}
    [buffers]
    acts = {kib = 2, double_buffered = true}
    weights = {kib = 0.5}
    psums = {kib = 1}
    [sources]
    """ + "\n".join(f'"{key}" = "assumed"' for key in NUMBERS)
    assert load_accel(write(tmp_path, toml, "mine.toml")) == load_accel(write(tmp_path, GOOD))


@pytest.mark.parametrize("name", list_accels())
def test_every_preset_loads_in_every_dataflow_of_its_family(name):
    accel = load_accel(name)
    assert accel.name == name
    for dataflow in accel.dataflows:
        other = load_accel(name, dataflow)
        assert other.dataflow == dataflow
        names = [component.name for component in other.components]
        assert len(set(names)) == len(names)
        assert names[-3:] == ["acts", "weights", "psums"]


def test_presets_have_the_sizes_they_are_known_for():
    sizes = {name: (a.rows, a.cols) for name in list_accels() for a in [load_accel(name)]}
    assert sizes == {
        "gemmini-like": (16, 16),
        "gemmini-like-4x4": (4, 4),
        "gemmini-like-8x8": (8, 8),
        "pipelined-systolic": (8, 8),
        "pipelined-systolic-4x4": (4, 4),
        "systolic": (32, 32),
        "systolic-16x16": (16, 16),
        "systolic-8x8": (8, 8),
        "systolic-tpu-like-256": (256, 256),
        "tpu-v1-like": (256, 256),
        "vta-like": (16, 16),
        "nvdla-small-like": (8, 8),
        "eyeriss-like": (12, 14),
        "rram-crossbar": (128, 32),
        "fpga-lut": (16, 16),
    }
    widths = {"nvdla-small-like": (8, 18, 34), "eyeriss-like": (16, 16, 16)}
    for name in list_accels():
        accel = load_accel(name)
        bits = (accel.operand_bits, accel.product_bits, accel.acc_bits)
        assert bits == widths.get(name, (8, 16, 32)), name
        assert (accel.overflow == "saturate") == (name == "nvdla-small-like")
        assert accel.unsigned_acts == (accel.family in ("systolic", "tpu"))


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("array.rows", 0, "array.rows must be >= 1, got 0"),
        ("array.rows", 1025, "array.rows must be <= 1024, got 1025"),
        ("array.rows", True, "array.rows must be a whole number, got True"),
        ("array.rows", 8.0, "array.rows must be a whole number, got 8.0"),
        ("array.cols", "8", "array.cols must be a whole number, got '8'"),
        ("array.cols", None, "array.cols must be a whole number, got None"),
        ("array", 3, "array must be a mapping, got 3"),
        ("array.depth", 3, "array.depth is not a key of a description"),
        ("bits.operand", 1, "bits.operand must be >= 2, got 1"),
        ("bits.operand", 17, "bits.operand must be <= 16, got 17"),
        ("bits.product", 7, "bits.product must be >= 2 x bits.operand = 8"),
        ("bits.acc", 7, "bits.acc must be >= bits.product = 8, got 7"),
        ("bits.acc", 49, "bits.acc must be <= 48, got 49"),
        ("buffers.acts.kib", 0, "buffers.acts.kib must be > 0, got 0"),
        ("buffers.acts.kib", -1, "buffers.acts.kib must be > 0, got -1"),
        ("buffers.acts.kib", float("nan"), "buffers.acts.kib must be a finite number, got nan"),
        ("buffers.acts.kib", float("inf"), "buffers.acts.kib must be a finite number, got inf"),
        ("buffers.acts.kib", 10**400, "buffers.acts.kib must be"),
        ("buffers.acts.kib", "many", "buffers.acts.kib must be a number, got 'many'"),
        ("buffers.acts.kib", 0.3, "buffers.acts.kib must be a whole number of bytes, got 0.3"),
        ("buffers.psums.kib", 0.0078125, "buffers.psums.kib must hold one word for every PE"),
        ("buffers.weights", ..., "buffers.weights must be given"),
        ("buffers.acts.double_buffered", 1, "must be true or false, got 1"),
        ("family", "eyerisk", "family must be one of systolic, gemmini, pipelined"),
        ("family", "gemmini", "overflow of family gemmini must be wrap, got saturate"),
        ("family", "pipelined", "unsigned_acts of family pipelined must be false, got true"),
        ("dataflow", "rs", "dataflow of family systolic must be one of ws, os, is, got rs"),
        ("name", "", "name must be text, got ''"),
        ("name", "../x", "name must be 1 to 64 letters"),
        ("about", "\x1b[2J", "about must be printable text"),
        ("sources", ["x"], "sources must be a mapping"),
        ("sources.clock", "x", "sources must name keys of the description, got 'clock'"),
        ("rows", 4, "rows is not a key of a description"),
    ],
)
def test_one_wrong_key_is_named_with_rule_value_and_place(tmp_path, path, value, says):
    file = write(tmp_path, changed(path, value))
    with pytest.raises(ConfigError) as caught:
        load_accel(file)
    assert says in str(caught.value)
    assert f"({file}: " in str(caught.value)


def test_input_stationary_is_refused_where_the_family_cannot(tmp_path):
    data = changed("family", "gemmini") | {"overflow": "wrap", "unsigned_acts": False}
    assert load_accel(write(tmp_path, data)).dataflow == "os"
    with pytest.raises(ConfigError, match="dataflow of family gemmini must be one of os, ws"):
        load_accel(write(tmp_path, data | {"dataflow": "is"}))


@pytest.mark.parametrize("name", list_accels())
def test_every_preset_says_what_it_is_and_where_each_number_is_from(name):
    description = read_description(PRESETS / f"{name}.yaml", name)
    assert description.about
    assert set(NUMBERS) <= set(description.sources)


def test_a_users_file_need_not_say_where_its_numbers_are_from(tmp_path):
    data = {key: value for key, value in GOOD.items() if key not in ("about", "sources")}
    accel = load_accel(write(tmp_path, data))
    assert dataclasses.replace(accel, sources=GOOD["sources"]) == load_accel(write(tmp_path, GOOD))
    assert accel.sources == {}
    data["sources"] = {"bits.acc": "our RTL"}
    assert load_accel(write(tmp_path, data)).sources == {"bits.acc": "our RTL"}
    del data["sources"]
    changed = load_accel(write(tmp_path, data), overrides={"rows": 5})
    assert changed.sources == {"array.rows": "set by the user (rows=5)"}


@pytest.mark.parametrize("name", list_accels())
def test_a_description_written_as_yaml_reads_the_same(tmp_path, name):
    other = load_accel(name).dataflows[-1]
    for dataflow, overrides in ((None, {}), (other, {"rows": 5, "buffers.acts.kib": 1.5})):
        description = load_description(name, dataflow, overrides)
        text = description_yaml(description)
        path = write(tmp_path, text)
        assert load_description(path) == description
        assert load_accel(path) == load_accel(name, dataflow, overrides)
    bare = {key: value for key, value in GOOD.items() if key not in ("about", "sources")}
    description = load_description(write(tmp_path, bare, "bare.yaml"))
    text = description_yaml(description)
    assert load_description(write(tmp_path, text)) == description
    assert "about" not in text and "sources" not in text


def test_all_problems_come_in_one_error(tmp_path):
    data = copy.deepcopy(GOOD)
    data["array"]["rows"] = 0
    data["bits"] = {"operand": 8, "product": 8, "acc": 99}
    data["color"] = "red"
    data["sources"]["bits.add"] = "assumed"
    with pytest.raises(ConfigError) as caught:
        load_accel(write(tmp_path, data))
    starts = [line.split(" must")[0].split(" is not")[0] for line in str(caught.value).split("\n")]
    assert sorted(starts) == ["array.rows", "bits.acc", "bits.product", "color", "sources"]


@pytest.mark.parametrize("path", [*NUMBERS, "name", "family", "dataflow"])
def test_a_missing_key_is_named(tmp_path, path):
    with pytest.raises(ConfigError, match=f"{path} must be given"):
        load_accel(write(tmp_path, changed(path, ...)))


LAUGHS = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must be a mapping, got None"),
        ("- 1\n- 2\n", "must be a mapping, got [1, 2]"),
        ("a: [1,", "must be valid YAML"),
        ("a: 1\n---\nb: 2\n", "must be valid YAML"),
        ("name: a\nname: b\n", "key 'name' is given twice"),
        (LAUGHS, "aliases are not allowed"),
        ("a: &a {b: *a}\n", "aliases are not allowed"),
        ("a: " + "[" * 3000, "nested deeper than"),
        ("a: " + "{b: " * 3000, "nested deeper than"),
        ("a: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
        ("a: 2001-99-99\n", "must be valid YAML"),
        ("a: " + "9" * 5000, "must be valid YAML"),
        ("name: 0x" + "f" * 5000, "name must be text, got a number of thousands of digits"),
        ("? [x]\n: 1\n", "unhashable"),
        ("1: 2\n", "1"),
        ("a: \x00", "must be valid YAML"),
        ("a: b\n" * 300_000, "at most 1000000 bytes"),
    ],
)
def test_hostile_yaml_is_one_clear_error(tmp_path, text, says):
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_accel(file)
    assert says in str(caught.value)
    assert str(file) in str(caught.value)
    assert len(str(caught.value)) < 5000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a = ", "must be valid TOML"),
        ("a = " + "[" * 100_000, "must be valid TOML: nested too deeply"),
        ("a = 1\na = 2\n", "must be valid TOML"),
        ("a = 2020-01-01\n", "a is not a key of a description"),
    ],
)
def test_hostile_toml_is_one_clear_error(tmp_path, text, says):
    with pytest.raises(ConfigError) as caught:
        load_accel(write(tmp_path, text, "mine.toml"))
    assert says in str(caught.value)


def test_files_that_are_no_text_files_are_refused(tmp_path):
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"name: \xff\xfe")
    with pytest.raises(ConfigError, match="must be UTF-8 text, got byte 0xff at offset 6"):
        load_accel(binary)
    with pytest.raises(ConfigError, match="No such file"):
        load_accel(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="must be a regular file"):
        load_accel(tmp_path)
    with pytest.raises(ConfigError, match="cannot read"):
        load_accel("a\0b.yaml")


def test_an_unknown_name_gives_the_names_and_the_nearest():
    with pytest.raises(ConfigError, match="one of .*gemmini-like, .*did you mean systolic\\?"):
        load_accel("sistolic")


def test_overrides_of_the_command_line_change_the_accelerator_and_its_sources():
    accel = load_accel(
        "systolic",
        "is",
        {
            "rows": "3",
            "cols": 5,
            "operand_bits": "4",
            "product_bits": "9",
            "acc_bits": "24",
            "overflow": "saturate",
            "unsigned_acts": "false",
            "buffers.acts.kib": "1e3",
            "buffers.acts.double_buffered": "False",
        },
    )
    assert (accel.rows, accel.cols, accel.dataflow) == (3, 5, "is")
    assert (accel.operand_bits, accel.product_bits, accel.acc_bits) == (4, 9, 24)
    assert (accel.overflow, accel.unsigned_acts) == ("saturate", False)
    assert accel.buffers["acts"] == Buffer(1000.0, False)
    assert accel.buffers["weights"] == load_accel("systolic").buffers["weights"]
    assert accel.sources["array.rows"] == "set by the user (rows=3)"
    assert (
        accel.sources["buffers.weights.kib"]
        == load_accel("systolic").sources["buffers.weights.kib"]
    )


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("rwos", "8", "an override must be one of rows, cols, .*did you mean rows\\?"),
        ("rows", "eight", "array.rows must be a whole number, got 'eight' \\(rows=eight on"),
        ("rows", "8.5", "array.rows must be a whole number, got 8.5"),
        ("rows", "1_0", "array.rows must be a whole number, got '1_0'"),
        ("acc_bits", "15", "bits.acc must be >= bits.product = 16, got 15 \\(acc_bits=15 on"),
        ("overflow", "clip", "overflow must be 'wrap' or 'saturate'"),
        ("buffers.acts.kib", "nan", "must be a finite number"),
    ],
)
def test_a_wrong_override_is_named(key, value, says):
    with pytest.raises(ConfigError, match=says):
        load_accel("systolic", overrides={key: value})


def test_every_override_leads_to_a_key_of_the_description():
    data = copy.deepcopy(GOOD)
    for path in OVERRIDES.values():
        place = data
        for part in path.split(".")[:-1]:
            place = place[part]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
KEYS = ["name", "family", "dataflow", "array", "array.rows", "bits", "bits.acc", "overflow",
        "unsigned_acts", "buffers", "buffers.acts", "buffers.psums.kib", "sources"]  # fmt: skip


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(KEYS), values, min_size=1, max_size=4))
def test_any_content_is_either_valid_or_a_list_of_problems(changes):
    data = copy.deepcopy(GOOD)
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = data
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[last] = value
    description, problems = check(data)
    assert (description is None) == bool(problems)
    if description is not None:
        description.to_accel()
