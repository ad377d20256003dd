"""Traces: what is written is read, kills and full disks cost nothing, damage is seen."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fsim.errors import FsimError, TraceError, TraceTooNewError
from fsim.simulator import trace as trace_module
from fsim.simulator.statistics import Outcome
from fsim.simulator.trace import (
    OUTCOME,
    OUTCOME_CODES,
    TRIALS,
    TraceWriter,
    hash_task,
    read_trace,
    tensor_digest,
)
from fsim.types import FAULT

ROOT = Path(__file__).resolve().parent.parent
TASK = {
    "model": "digits-cnn",
    "ber": 1e-5,
    "layers": ["conv1", "fc"],
    "seed": 7,
    "accel": {"rows": 8},
}
PROVENANCE = {"fsim": "0.1", "argv": ["fsim", "inject"], "host": "µ"}


def trials(numbers, images=3):
    """Fault and outcome rows of some trials; a pure function of the trial numbers."""
    faults, outcomes = [np.empty(0, FAULT)], [np.empty(0, OUTCOME)]
    for number in numbers:
        rng = np.random.default_rng(number)
        rows = np.zeros(rng.integers(0, 6), FAULT)
        for name in FAULT.names:
            rows[name] = rng.integers(-1000, 1000, len(rows))
        rows["trial"] = number
        faults.append(rows)
        out = np.zeros(images, OUTCOME)
        for name in ("label", "golden", "faulty"):
            out[name] = rng.integers(0, 10, images)
        out["outcome"] = rng.integers(0, OUTCOME_CODES, images)
        out["digest"] = rng.integers(0, 2**64, images, np.uint64)
        out["trial"], out["image"] = number, np.arange(images)
        outcomes.append(out)
    return np.concatenate(faults), np.concatenate(outcomes)


def write(path, *batches, task=TASK, **options):
    with TraceWriter(path, task, PROVENANCE, **options) as writer:
        for batch in batches:
            writer.append(*trials(batch))
    return path


def assert_holds(path, numbers):
    trace = read_trace(path)
    faults, outcomes = trials(numbers)
    assert_array_equal(trace.faults, faults)
    assert_array_equal(trace.outcomes, outcomes)
    assert_array_equal(trace.trials["trial"], numbers)
    assert (trace.task, trace.provenance) == (TASK, PROVENANCE)
    return trace


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write(tmp_path_factory.mktemp("trace") / "small.h5", range(5))


def refuse(path, pattern=None):
    """The file is refused with one clear line; returns it."""
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    if pattern:
        assert re.search(pattern, message), message
    return message


# Content


def test_what_is_written_is_read(tmp_path):
    trace = assert_holds(write(tmp_path / "a.h5", range(40)), range(40))
    assert os.listdir(tmp_path) == ["a.h5"]
    lengths = [len(trials([t])[0]) for t in range(40)]
    assert_array_equal(trace.trials["n_faults"], lengths)
    assert 0 in lengths and 5 in lengths
    for number in (0, 17, 39):
        assert_array_equal(trace.faults_of(number), trials([number])[0])
    # The digest by its definition in docs/trace-format.md.
    rows = trials([17])[0]
    packed = b"".join(struct.pack("<qqiiiiiiqiqqqqq", *row.item()) for row in rows)
    digest = hashlib.blake2b(packed, digest_size=8).digest()
    assert trace.trials["rows_digest"][17] == int.from_bytes(digest, "little")


def test_extreme_values_survive(tmp_path):
    faults, outcomes = np.zeros(2, FAULT), np.zeros(1, OUTCOME)
    for table, row, limit in ((faults, 0, "min"), (faults, 1, "max"), (outcomes, 0, "max")):
        for name in table.dtype.names:
            table[name][row] = getattr(np.iinfo(table.dtype[name]), limit)
    faults["trial"] = outcomes["trial"]
    outcomes["outcome"] = Outcome.HANG
    with TraceWriter(tmp_path / "a.h5", TASK, PROVENANCE) as writer:
        writer.append(faults, outcomes)
    trace = read_trace(tmp_path / "a.h5")
    assert_array_equal(trace.faults, faults)
    assert_array_equal(trace.outcomes, outcomes)


def test_an_empty_trace_and_trials_without_faults(tmp_path):
    trace = read_trace(write(tmp_path / "a.h5"))
    assert len(trace.faults) == len(trace.outcomes) == len(trace.trials) == 0
    _, outcomes = trials([3, 9])
    with TraceWriter(tmp_path / "b.h5", TASK, PROVENANCE) as writer:
        writer.append(np.empty(0, FAULT), outcomes)
        writer.append(np.empty(0, FAULT), np.empty(0, OUTCOME))
    trace = read_trace(tmp_path / "b.h5")
    assert_array_equal(trace.trials["n_faults"], [0, 0])
    assert_array_equal(trace.outcomes, outcomes)


def test_bytes_depend_on_the_content_alone(tmp_path, monkeypatch):
    whole = write(tmp_path / "a.h5", range(12)).read_bytes()
    assert (
        write(tmp_path / "b.h5", [11, 3], [5], range(0, 3), [4, 10, 6], [7, 8, 9]).read_bytes()
        == whole
    )
    later = time.time() + 86_400
    monkeypatch.setattr(time, "time", lambda: later)
    monkeypatch.setattr(trace_module, "_MERGE_BYTES", 1)  # one column at a time
    script = (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[2]]\n"
        "from pathlib import Path\n"
        "import test_trace as t\n"
        "t.write(Path(sys.argv[3]), [2, 1, 0], range(3, 12))\n"
    )
    other = tmp_path / "c.h5"
    subprocess.run([sys.executable, "-c", script, ROOT, ROOT / "tests", other], check=True)
    assert other.read_bytes() == whole
    assert write(tmp_path / "d.h5", range(6, 12), range(6)).read_bytes() == whole


def test_rows_of_a_trial_keep_their_order(tmp_path):
    faults, outcomes = trials(range(8))
    shuffled = np.random.default_rng(0).permutation(len(faults))
    with TraceWriter(tmp_path / "a.h5", TASK, PROVENANCE) as writer:
        writer.append(faults[shuffled], outcomes[::-1])
    trace = read_trace(tmp_path / "a.h5")
    for number in range(8):
        given = faults[shuffled]
        assert_array_equal(trace.faults_of(number), given[given["trial"] == number])
    assert_array_equal(trace.outcomes, outcomes)


def test_tensor_digests_follow_their_definition():
    tensors = np.arange(24, dtype=np.int32).reshape(2, 3, 4) - 5
    expected = []
    for tensor in tensors:
        packed = struct.pack("<12q", *tensor.ravel().tolist())
        digest = hashlib.blake2b(packed, digest_size=8).digest()
        expected.append(int.from_bytes(digest, "little"))
    assert_array_equal(tensor_digest(tensors), np.array(expected, np.uint64))
    assert_array_equal(tensor_digest(np.asfortranarray(tensors)), np.array(expected, np.uint64))


def test_the_task_hash_sees_every_value_and_no_order():
    expected = hashlib.sha256(b'{"a":[1,2.5],"b":{"c":null,"d":"\\u00b5"}}').hexdigest()
    assert hash_task({"b": {"d": "µ", "c": None}, "a": (1, 2.5)}) == expected
    assert hash_task({"a": 1}) != hash_task({"a": 1.0}) != hash_task({"a": True})


@pytest.mark.parametrize(
    "task, where",
    [
        ({"a": {"b": np.int64(3)}}, "task.a.b"),
        ({"a": [1, float("nan")]}, r"task.a\[1\]"),
        ({"a": {1: 2}}, "task.a"),
        ({"a": {1, 2}}, "task.a"),
        ([], "task"),
    ],
)
def test_a_task_that_json_cannot_hold_is_refused(task, where):
    with pytest.raises(TraceError, match=where):
        hash_task(task)


def test_the_specification_lists_every_column_and_code():
    text = (ROOT / "docs" / "trace-format.md").read_text(encoding="utf-8")
    for group, dtype in (("faults", FAULT), ("outcomes", OUTCOME), ("trials", TRIALS)):
        section = text.split(f"### `/{group}`")[1].split("###")[0]
        columns = re.findall(r"^\| `(\w+)` \| `([<|]\w\d)` \|", section, re.M)
        assert columns == [(name, dtype[name].str) for name in dtype.names]
    assert f"({FAULT.itemsize} bytes a row)" in text
    codes = re.findall(r"^\| (\d) \| (\w+) \|", text, re.M)
    assert codes == [(str(int(o)), o.name.lower()) for o in Outcome]
    assert len(Outcome) == OUTCOME_CODES


# Writing, resuming


def test_an_existing_file_is_overwritten_only_on_request(tmp_path):
    path = write(tmp_path / "a.h5", range(3))
    before = path.read_bytes()
    with pytest.raises(TraceError, match="exists already"):
        write(path, range(4))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.h5"]
    with TraceWriter(path, {"other": 1}, PROVENANCE, overwrite=True) as writer:
        writer.append(*trials([8]))
        assert path.read_bytes() == before  # until the new one is complete
    assert_array_equal(read_trace(path).trials["trial"], [8])


def test_a_file_that_appears_while_the_trace_is_written_is_kept(tmp_path):
    path = tmp_path / "a.h5"
    writer = TraceWriter(path, TASK, PROVENANCE)
    writer.append(*trials(range(3)))
    path.write_bytes(b"precious")
    with pytest.raises(TraceError, match="appeared"):
        writer.close()
    assert path.read_bytes() == b"precious"
    path.unlink()
    assert_holds(writer.close(), range(3))


def test_resume_knows_what_is_stored_and_finishes_to_the_same_bytes(tmp_path):
    whole = write(tmp_path / "whole.h5", range(10)).read_bytes()
    path = tmp_path / "a.h5"
    assert TraceWriter.resume(path, TASK).size == 0
    with pytest.raises(KeyboardInterrupt):
        with TraceWriter(path, TASK, PROVENANCE) as writer:
            writer.append(*trials([4, 2]))
            writer.append(*trials([7]))
            raise KeyboardInterrupt
    assert not path.exists()
    assert_array_equal(TraceWriter.resume(path, TASK), [2, 4, 7])
    with pytest.raises(TraceError, match="unfinished"):
        TraceWriter(path, TASK, PROVENANCE)
    with TraceWriter(path, TASK, {"later": "run"}, resume=True) as writer:
        assert_array_equal(writer.stored_trials, [2, 4, 7])
        with pytest.raises(TraceError, match="trial 4 is stored already"):
            writer.append(*trials([4, 5]))
        writer.append(*trials([0, 1, 3, 5, 6, 8, 9]))
    assert path.read_bytes() == whole  # the provenance of the beginning is kept
    assert sorted(os.listdir(tmp_path)) == ["a.h5", "whole.h5"]


def test_a_finished_trace_can_be_resumed_too(tmp_path):
    whole = write(tmp_path / "whole.h5", range(6)).read_bytes()
    path = write(tmp_path / "a.h5", range(4))
    changed = path.stat().st_mtime_ns
    write(path, resume=True)  # nothing to add: the file is not touched
    assert path.stat().st_mtime_ns == changed
    assert_array_equal(TraceWriter.resume(path, TASK), range(4))
    write(path, [4, 5], resume=True)
    assert path.read_bytes() == whole


def test_shards_left_by_a_close_that_was_killed_do_not_count_twice(tmp_path):
    path = tmp_path / "a.h5"
    writer = TraceWriter(path, TASK, PROVENANCE)
    writer.append(*trials(range(3)))
    shard = tmp_path / "a.h5.parts" / "000001.h5"
    left = shard.read_bytes()
    whole = writer.close().read_bytes()
    shard.parent.mkdir()
    shard.write_bytes(left)
    assert_array_equal(TraceWriter.resume(path, TASK), range(3))
    write(path, resume=True)
    assert path.read_bytes() == whole and os.listdir(tmp_path) == ["a.h5"]


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"seed": 8}, r"task\.seed was 7, now 8"),
        ({"accel": {"rows": 16}}, r"task\.accel\.rows was 8, now 16"),
        ({"layers": ["conv1", "conv2"]}, r'task\.layers\[1\] was "fc", now "conv2"'),
        ({"layers": ["conv1"]}, r"task\.layers was"),
        ({"new": 1}, r"task\.new is only now"),
        ({"ber": 1}, r"task\.ber was 1e-05, now 1$"),
    ],
)
def test_another_task_is_refused_and_the_field_named(tmp_path, changed, message):
    path = write(tmp_path / "a.h5", range(2))
    for attempt in (
        lambda: TraceWriter.resume(path, TASK | changed),
        lambda: TraceWriter(path, TASK | changed, PROVENANCE, resume=True),
    ):
        with pytest.raises(TraceError, match=message):
            attempt()
    assert os.listdir(tmp_path) == ["a.h5"]


def test_a_damaged_shard_is_named(tmp_path):
    path = tmp_path / "a.h5"
    writer = TraceWriter(path, TASK, PROVENANCE)
    writer.append(*trials(range(2)))
    writer.append(*trials(range(2, 4)))
    writer.abandon()
    shard = tmp_path / "a.h5.parts" / "000002.h5"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(TraceError, match="000002.h5 is damaged"):
        TraceWriter.resume(path, TASK)
    shard.unlink()
    assert_array_equal(TraceWriter.resume(path, TASK), range(2))
    with pytest.raises(TraceError, match="abandoned"):
        writer.close()


def test_two_writers_do_not_share_a_trace(tmp_path):
    pytest.importorskip("fcntl")
    writer = TraceWriter(tmp_path / "a.h5", TASK, PROVENANCE)
    with pytest.raises(TraceError, match="another process"):
        TraceWriter(tmp_path / "a.h5", TASK, PROVENANCE, resume=True)
    writer.append(*trials(range(3)))
    assert_holds(writer.close(), range(3))
    with pytest.raises(TraceError, match="closed"):
        writer.append(*trials([5]))


def test_batches_that_are_not_whole_trials_are_refused(tmp_path):
    faults, outcomes = trials(range(4))
    twice = np.concatenate([outcomes, outcomes[:1]])
    unknown = outcomes.copy()
    unknown["outcome"][2] = OUTCOME_CODES
    negative = outcomes[:3].copy()
    negative["trial"] = -1
    with TraceWriter(tmp_path / "a.h5", TASK, PROVENANCE) as writer:
        for bad_faults, bad_outcomes, message in (
            (faults, outcomes[:3], "has fault rows but no outcome"),
            (faults, twice, "two outcomes for image 0"),
            (faults, unknown, "codes below 6"),
            (faults[:0], negative, "trials >= 0"),
            (faults.tolist(), outcomes, "FAULT"),
            (faults, outcomes[["trial", "image"]], "OUTCOME"),
            (faults[None], outcomes, "1-D"),
        ):
            with pytest.raises(TraceError, match=message):
                writer.append(bad_faults, bad_outcomes)
        writer.append(faults, outcomes)
    assert_holds(tmp_path / "a.h5", range(4))


@pytest.mark.parametrize("stage", ["append", "close"])
def test_a_full_disk_is_one_clean_error_and_loses_nothing(tmp_path, stage):
    path = tmp_path / "a.h5"
    writer = TraceWriter(path, TASK, PROVENANCE)
    writer.append(*trials(range(3)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # the 20 000th byte fails
    try:
        with pytest.raises(TraceError, match="cannot write .*: File too large") as caught:
            writer.append(*trials([3])) if stage == "append" else writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(caught.value, OSError) and isinstance(caught.value, FsimError)
    assert sorted(os.listdir(tmp_path / "a.h5.parts")) == ["000001.h5", "lock"]
    assert not path.exists()
    writer.append(*trials([3]))
    assert_holds(writer.close(), range(4))


def test_no_space_at_sync_leaves_no_partial_file(tmp_path, monkeypatch):
    writer = TraceWriter(tmp_path / "a.h5", TASK, PROVENANCE)

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(TraceError, match="No space left on device"):
            writer.append(*trials(range(3)))
    assert os.listdir(tmp_path / "a.h5.parts") == ["lock"]
    writer.abandon()
    assert os.listdir(tmp_path) == []


def test_a_folder_that_does_not_exist_is_made_and_a_file_in_its_place_refused(tmp_path):
    assert_holds(write(tmp_path / "new" / "a.h5", range(2)), range(2))
    (tmp_path / "file").write_text("x")
    with pytest.raises(TraceError, match="cannot write"):
        TraceWriter(tmp_path / "file" / "a.h5", TASK, PROVENANCE)


WRITER = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from pathlib import Path
import test_trace as t
path = Path(sys.argv[3])
done = set(t.TraceWriter.resume(path, t.TASK).tolist())
with t.TraceWriter(path, t.TASK, t.PROVENANCE, resume=True) as writer:
    print("ready", flush=True)
    for number in range(20):
        if number not in done:
            writer.append(*t.trials([number]))
"""


def test_a_killed_writer_loses_nothing_and_ends_in_the_same_bytes(tmp_path):
    whole = write(tmp_path / "whole.h5", range(20)).read_bytes()
    path = tmp_path / "a.h5"
    command = [sys.executable, "-c", WRITER, str(ROOT), str(ROOT / "tests"), str(path)]
    # Instants within the run; the last ones are likely to fall into the merge.
    for delay in (0.1, 0.4, 0.9):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"ready\n"
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        stored = TraceWriter.resume(path, TASK)  # reads and checks every shard
        assert_array_equal(stored, np.arange(len(stored)))
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert path.read_bytes() == whole
    assert sorted(os.listdir(tmp_path)) == ["a.h5", "whole.h5"]


def test_a_kill_at_every_step_of_the_last_rename_can_be_resumed(tmp_path, monkeypatch):
    whole = write(tmp_path / "whole.h5", range(4)).read_bytes()

    class Killed(BaseException):
        pass

    def kill(*args, **kwargs):
        raise Killed

    for step, (module, name) in enumerate([(os, "replace"), (trace_module.shutil, "rmtree")]):
        path = tmp_path / f"{step}.h5"
        writer = TraceWriter(path, TASK, PROVENANCE)
        writer.append(*trials([3, 1]))
        writer.append(*trials([0, 2]))
        with monkeypatch.context() as patch:
            patch.setattr(module, name, kill)
            with pytest.raises(Killed):
                writer.close()
        writer.abandon()
        assert_array_equal(TraceWriter.resume(path, TASK), range(4))
        write(path, resume=True)
        assert path.read_bytes() == whole
        assert not Path(f"{path}.parts").exists()


# Damage


def test_any_damaged_byte_or_truncation_is_seen_or_harmless(small, tmp_path):
    data = small.read_bytes()
    good = read_trace(small)
    rng = np.random.default_rng(2024)
    used = np.flatnonzero(np.frombuffer(data, np.uint8))  # most of the file is zero
    path = tmp_path / "damaged.h5"
    refused = 0
    for i in range(220):
        damaged = bytearray(data)
        if i < 20:
            del damaged[rng.integers(0, len(data)) :]
        else:
            position = rng.choice(used) if i % 4 else rng.integers(0, len(data))
            damaged[position] ^= rng.integers(1, 256)
        path.write_bytes(damaged)
        try:
            trace = read_trace(path)
        except TraceError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        assert i >= 20
        assert_array_equal(trace.faults, good.faults)
        assert_array_equal(trace.outcomes, good.outcomes)
        assert_array_equal(trace.trials, good.trials)
        assert (trace.task, trace.provenance) == (good.task, good.provenance)
    assert refused > 100


def test_an_altered_row_is_refused_and_its_trial_named(small, tmp_path):
    path = tmp_path / "altered.h5"
    path.write_bytes(small.read_bytes())
    with h5py.File(path, "r+") as file:
        row = 4
        trial = int(file["faults/trial"][row])
        file["faults/xor_mask"][row] ^= 1
    refuse(path, f"fault rows of trial {trial} do not match their digest")


@pytest.mark.parametrize("column", ["outcomes/outcome", "outcomes/digest", "outcomes/label"])
def test_an_altered_outcome_is_refused(small, tmp_path, column):
    path = tmp_path / "altered.h5"
    path.write_bytes(small.read_bytes())
    with h5py.File(path, "r+") as file:
        values = file[column][...]
        values[3] = (values[3] + 1) % OUTCOME_CODES
        file[column][...] = values
    refuse(path, "content does not match its digest")


def test_an_altered_task_is_refused(small, tmp_path):
    path = tmp_path / "altered.h5"
    path.write_bytes(small.read_bytes())
    with h5py.File(path, "r+") as file:
        file["task"][0] = file["task"][0].replace(b'"seed":7', b'"seed":9')
    refuse(path, "content does not match its digest")


def test_what_is_no_trace_is_refused(tmp_path):
    refuse(tmp_path / "none.h5", "no such file")
    (tmp_path / "text.h5").write_text("hello\n")
    refuse(tmp_path / "text.h5", "damaged or not a trace")
    (tmp_path / "empty.h5").write_bytes(b"")
    refuse(tmp_path / "empty.h5", "damaged or not a trace")
    (tmp_path / "folder.h5").mkdir()
    refuse(tmp_path / "folder.h5", "folder")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    refuse(tmp_path / "other.h5", "encoding-type")


# Hostile files


def changed(small, tmp_path, change):
    path = tmp_path / "hostile.h5"
    path.write_bytes(small.read_bytes())
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def replace(file, name, data=None, **options):
    del file[name]
    return file.create_dataset(name, data=data, **options)


FILTERS = dict(compression="gzip", shuffle=True, fletcher32=True)


def as_soft_link(file):
    del file["faults/row"]
    file["faults/row"] = h5py.SoftLink("/faults/col")


def as_external_link(file):
    del file["faults/row"]
    file["faults/row"] = h5py.ExternalLink("other.h5", "/faults/row")


def group_as_external_link(file):
    del file["faults"]
    file["faults"] = h5py.ExternalLink("other.h5", "/faults")


def as_external_storage(file):
    n = file["faults/row"].shape[0]
    replace(file, "faults/row", shape=(n,), dtype="<i4", external=[("/etc/hostname", 0, 4 * n)])


def as_virtual_dataset(file):
    n = file["faults/row"].shape[0]
    del file["faults/row"]
    layout = h5py.VirtualLayout((n,), "<i4")
    layout[:] = h5py.VirtualSource("other.h5", "faults/row", (n,))
    file["faults"].create_virtual_dataset("row", layout)


def with_a_cycle(file):
    file["faults/loop"] = file["/"]


def with_a_group_that_is_the_root(file):
    del file["faults"]
    file["faults"] = file["/"]


def with_a_group_for_a_column(file):
    del file["faults/row"]
    file["faults"].create_group("row")


def with_sixteen_gib(file):
    for name in FAULT.names:
        dtype = file["faults"][name].dtype
        replace(file, f"faults/{name}", shape=(1 << 31,), dtype=dtype, chunks=(65536,), **FILTERS)


def with_one_huge_column(file):
    replace(file, "faults/row", shape=(1 << 32,), dtype="<i4", chunks=(65536,), **FILTERS)


def with_a_huge_chunk(file):
    rows = file["faults/row"][...]
    replace(file, "faults/row", rows, chunks=(1 << 21,), maxshape=(None,), **FILTERS)


def as_compound(file):
    n = file["faults/row"].shape[0]
    data = np.zeros(n, [("a", "<i4"), ("b", "<i4")])
    replace(file, "faults/row", data, chunks=(n,), **FILTERS)


def as_float(file):
    replace(
        file,
        "faults/row",
        file["faults/row"][...].astype("<f4"),
        chunks=(64,),
        maxshape=(None,),
        **FILTERS,
    )


def as_big_endian(file):
    replace(
        file,
        "faults/row",
        file["faults/row"][...].astype(">i4"),
        chunks=(64,),
        maxshape=(None,),
        **FILTERS,
    )


def as_two_dimensions(file):
    replace(file, "faults/row", file["faults/row"][...][:, None], chunks=(1, 1), **FILTERS)


def as_scalar(file):
    replace(file, "faults/row", 1)


def too_short(file):
    file["faults/row"].resize((file["faults/row"].shape[0] - 1,))


def all_too_short(file):
    for name in FAULT.names:
        file["faults"][name].resize((file["faults"][name].shape[0] - 1,))


def without_checksums(file):
    replace(
        file,
        "faults/row",
        file["faults/row"][...],
        chunks=(64,),
        maxshape=(None,),
        compression="gzip",
    )


def contiguous(file):
    replace(file, "faults/row", file["faults/row"][...])


def without_a_column(file):
    del file["outcomes/label"]


def with_a_further_group(file):
    file.create_group("extra")


def with_a_variable_length_task(file):
    replace(file, "task", np.array(["{}"], object), dtype=h5py.string_dtype(), chunks=(1,))


def with_a_huge_task(file):
    replace(file, "task", shape=(1,), dtype=f"S{(64 << 20) + 1}", chunks=(1,), **FILTERS)


def with_a_task_that_is_a_list(file):
    replace(file, "task", np.array([b"[]"]), chunks=(1,), **FILTERS)


def with_an_array_for_an_attribute(file):
    file.attrs.create("encoding-type", np.zeros(4000, "S8"))


def with_a_variable_length_attribute(file):
    file.attrs["encoding-type"] = "fsim-trace"


def with_an_unsorted_trial_column(file):
    file["trials/trial"][...] = file["trials/trial"][...][::-1]


def with_a_negative_length(file):
    counts = file["trials/n_faults"][...]
    counts[0], counts[1] = -1, counts[0] + counts[1] + 1
    file["trials/n_faults"][...] = counts


@pytest.mark.parametrize(
    "change, pattern",
    [
        (as_soft_link, "/faults/row must not be a soft or external link"),
        (as_external_link, "/faults/row must not be a soft or external link"),
        (group_as_external_link, "/faults must not be a soft or external link"),
        (as_external_storage, "must not keep its data in other files"),
        (as_virtual_dataset, "must not keep its data in other files"),
        (with_a_cycle, "/faults must hold exactly"),
        (with_a_group_that_is_the_root, "must hold exactly"),
        (with_a_group_for_a_column, "/faults/row must be a dataset"),
        (with_sixteen_gib, "more than the limit"),
        (with_one_huge_column, "must be equally long"),
        (with_a_huge_chunk, "too large"),
        (as_compound, "must be <i4"),
        (as_float, "must be <i4, got float32"),
        (as_big_endian, "must be <i4, got >i4"),
        (as_two_dimensions, "one dimension, got 2"),
        (as_scalar, "one dimension, got 0"),
        (too_short, "must be equally long"),
        (all_too_short, "add up to the rows"),
        (without_checksums, "fletcher32"),
        (contiguous, "must be chunked"),
        (without_a_column, "/outcomes must hold exactly"),
        (with_a_further_group, "/ must hold exactly"),
        (with_a_variable_length_task, "/task must use shuffle"),
        (with_a_huge_task, "too large"),
        (with_a_task_that_is_a_list, "digest"),
        (with_an_array_for_an_attribute, "encoding-type"),
        (with_a_variable_length_attribute, "encoding-type"),
        (with_an_unsorted_trial_column, "ascending"),
        (with_a_negative_length, "add up to the rows"),
    ],
)
def test_hostile_files_are_refused(small, tmp_path, change, pattern):
    (tmp_path / "other.h5").write_bytes(small.read_bytes())
    refuse(changed(small, tmp_path, change), pattern)


def test_the_memory_limit_covers_all_tables(small):
    trace = read_trace(small)
    size = trace.faults.nbytes + trace.outcomes.nbytes + trace.trials.nbytes
    assert_array_equal(read_trace(small, max_bytes=size).faults, trace.faults)
    with pytest.raises(TraceError, match="more than the limit"):
        read_trace(small, max_bytes=size - 1)


def test_later_versions_are_told_apart(small, tmp_path):
    def version(text):
        return lambda file: file.attrs.create("encoding-version", np.bytes_(text))

    path = changed(small, tmp_path, version("2"))
    with pytest.raises(TraceTooNewError, match="version 2 of the trace format.*up to version 1"):
        read_trace(path)
    for text in ("0", "-1", "1.0", "x", ""):
        refuse(changed(small, tmp_path, version(text)), "encoding-version")


def test_a_consistent_forgery_of_json_is_refused(tmp_path, monkeypatch):
    # A writer that follows the format but for the JSON itself: digests all match.
    for text, pattern in ((b"[]", "JSON object"), (b'{"a":NaN}', "not JSON"), (b"{", "damaged")):
        monkeypatch.setattr(trace_module, "canonical_json", lambda *_, text=text: text)
        monkeypatch.setattr(trace_module, "_stored", lambda *_, **__: ([], np.empty(0, np.int64)))
        path = tmp_path / f"{len(text)}.h5"
        with TraceWriter(path, {}, {}):
            pass
        monkeypatch.undo()
        refuse(path, pattern)


def test_plain_hdf5_tools_can_read_a_trace(small):
    """What the specification promises to other readers."""
    faults, _ = trials(range(5))
    with h5py.File(small, "r") as file:
        assert bytes(file.attrs["encoding-type"]) == b"fsim-trace"
        assert bytes(file.attrs["encoding-version"]) == b"1"
        assert json.loads(file["task"][0]) == TASK
        assert json.loads(file["provenance"][0]) == PROVENANCE
        for name in FAULT.names:
            assert_array_equal(file["faults"][name][...], faults[name])
            assert file["faults"][name].compression == "gzip"
        digest = hashlib.blake2b(digest_size=32)
        for group, dtype in (("faults", FAULT), ("outcomes", OUTCOME), ("trials", TRIALS)):
            for name in dtype.names:
                values = file[group][name][...]
                digest.update(f"{group}/{name} {dtype[name].str} {len(values)}\n".encode())
                digest.update(values.tobytes())
        for name in ("task", "provenance"):
            digest.update(f"{name} {len(file[name][0])}\n".encode() + file[name][0])
        assert bytes(file.attrs["content-digest"]).decode() == digest.hexdigest()


def test_added_trials_are_written_together_and_no_later_than_the_end(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    with TraceWriter(path, TASK, PROVENANCE) as writer:
        for trial in range(3):
            writer.add(*trials([trial]))
        assert not len(writer.stored_trials)
    assert list(read_trace(path).trials["trial"]) == [0, 1, 2]
    other = path.with_name("other.h5")
    writer = TraceWriter(other, TASK, PROVENANCE)
    writer.add(*trials([0]))
    writer.abandon()
    assert list(TraceWriter.resume(other, TASK)) == [0]
    monkeypatch.setattr("fsim.simulator.trace.SHARD_SECONDS", 0)
    with TraceWriter(path, TASK, PROVENANCE, overwrite=True) as writer:
        writer.add(*trials([7]))
        assert list(writer.stored_trials) == [7]
