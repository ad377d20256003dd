"""`fsim accel list|show|check`."""

from __future__ import annotations

import json

import pytest
import yaml

from fsim.accel_models.load import PRESETS, list_accels, load_accel


def test_list_shows_every_preset_in_text_and_json(fsim):
    text = fsim("accel", "list")
    assert text.exit_code == 0
    lines = text.stdout.splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(list_accels())]] == list_accels()
    found = json.loads(fsim("accel", "list", "--json").stdout)
    assert [item["name"] for item in found] == list_accels()
    assert {(item["rows"], item["dataflow"]) for item in found} == {
        (load_accel(name).rows, load_accel(name).dataflow) for name in list_accels()
    }


def test_show_lists_every_component_of_the_dataflow_in_use(fsim):
    found = json.loads(
        fsim("accel", "show", "gemmini-like-4x4", "--dataflow", "os", "--json").stdout
    )
    # machines.md's widths of the output-stationary mesh; memories after the registers.
    assert [(c["name"], c["bits"], c["count"], c["kind"]) for c in found["components"]] == [
        ("a", 8, 16, "register"),
        ("b", 8, 16, "register"),
        ("d", 32, 16, "register"),
        ("c1", 32, 16, "register"),
        ("c2", 32, 16, "register"),
        ("valid", 1, 16, "register"),
        ("prop", 1, 16, "register"),
        ("mul", 16, 16, "net"),
        ("acts", 8, 128 * 1024, "memory"),
        ("weights", 8, 128 * 1024, "memory"),
        ("psums", 32, 64 * 256, "memory"),
    ]
    text = fsim("accel", "show", "gemmini-like-4x4", "--dataflow", "os").stdout
    for component in found["components"]:
        line = next(row for row in text.splitlines() if row.split()[:1] == [component["name"]]
                    and component["about"] in row)  # fmt: skip
        assert line.split()[1:3] == [str(component["bits"]), str(component["count"])]
        assert " ".join(component["backends"]) in line
    for key, source in found["sources"].items():
        assert any(line.split()[:1] == [key] and source in line for line in text.splitlines())


@pytest.mark.parametrize(
    ("dataflow", "cycles"),
    # SCALE-Sim: folds x (2R + C + M - 2), (R + C + K - 2) and (2R + C + N - 2).
    [("ws", 72 * 4 * 86), ("os", 8 * 4 * 590), ("is", 72 * 8 * 54)],
)
def test_show_gives_the_cycles_of_a_product(fsim, dataflow, cycles):
    arguments = ("accel", "show", "systolic-8x8", "--dataflow", dataflow, "--gemm", "64,576,32")
    assert json.loads(fsim(*arguments, "--json").stdout)["gemm"] == {
        "m": 64,
        "k": 576,
        "n": 32,
        "cycles": cycles,
        "scalesim_cycles": cycles,
    }
    assert f"(64 x 576)(576 x 32): {cycles}\n" in fsim(*arguments).stdout


def test_show_takes_settings_and_says_who_set_them(fsim):
    found = json.loads(fsim("accel", "show", "systolic", "--set", "rows=3", "--json").stdout)
    assert (found["rows"], found["cols"]) == (3, 32)
    assert found["sources"]["array.rows"] == "set by the user (rows=3)"


@pytest.mark.parametrize("name", list_accels())
def test_show_yaml_prints_a_file_that_gives_the_same_accelerator(fsim, tmp_path, name):
    flow = load_accel(name).dataflows[-1]
    for settings in ((), ("--dataflow", flow, "--set", "cols=5")):
        printed = fsim("accel", "show", name, "--yaml", *settings)
        assert printed.exit_code == 0, printed.output
        path = tmp_path / "mine.yaml"
        path.write_text(printed.stdout)
        assert fsim("accel", "check", path).stdout.startswith(f"ok: {name}, ")
        wanted = load_accel(name, flow, {"cols": "5"}) if settings else load_accel(name)
        assert load_accel(path) == wanted


def test_show_tells_where_no_source_is_given(fsim, tmp_path):
    data = yaml.safe_load((PRESETS / "systolic.yaml").read_text())
    del data["sources"], data["about"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(data))
    result = fsim("accel", "show", tmp_path / "mine.yaml")
    assert result.stdout.endswith("Where the numbers come from: the description does not say\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("systolic", "--yaml", "--json"), "--yaml must be given without --json and --gemm"),
        (("systolic", "--yaml", "--set", "rows=0"), "array.rows must be >= 1, got 0"),
        (("nope",), "accelerator must be one of"),
        (("systolic", "--set", "rows"), "a setting must be KEY=VALUE, got 'rows'"),
        (("systolic", "--set", "rowz=3"), "did you mean rows?"),
        (
            ("systolic", "--set", "rows=0"),
            "array.rows must be >= 1, got 0 (rows=0 on systolic.yaml",
        ),
        (("gemmini-like", "--dataflow", "is"), "dataflow of family gemmini must be one of os, ws"),
        (("systolic", "--gemm", "1,2"), "must be three whole numbers m,k,n, got '1,2'"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(fsim, arguments, says):
    result = fsim("accel", "show", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_check_says_ok_or_every_problem(fsim, tmp_path):
    good = PRESETS / "gemmini-like.yaml"
    result = fsim("accel", "check", good)
    assert result.exit_code == 0
    assert result.stdout == f"ok: gemmini-like, 11 components ({good})\n"
    data = yaml.safe_load(good.read_text())
    data["array"]["rows"], data["bits"]["acc"] = 0, 100
    bad = tmp_path / "bad.yaml"
    bad.write_text(yaml.safe_dump(data))
    result = fsim("accel", "check", bad)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"Error: array.rows must be >= 1, got 0 ({bad}: array.rows)\n"
        f"       bits.acc must be <= 48, got 100 ({bad}: bits.acc)\n"
    )
    result = fsim("accel", "check", bad, "--json")
    assert result.exit_code == 2
    report = json.loads(result.stdout)
    assert (report["ok"], len(report["problems"])) == (False, 2)
