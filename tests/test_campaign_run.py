"""Campaigns on every engine, killed and resumed: one file, byte for byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fsim.campaign.results import read_results
from fsim.errors import FsimError
from fsim.simulator.campaign import run as R
from fsim.simulator.campaign.design import Allocation, Design
from fsim.simulator.campaign.rules import Rule
from fsim.simulator.campaign.tally import Tally
from tests.test_layout import ROOT

FIXED = ["--fault", "flip", "--sites", "psums", "--images", "20", "--trials", "900",
         "--shard-size", "100", "--quiet"]  # fmt: skip
STRATA = ["--fault", "flip", "--layers", "fc,conv1", "--images", "20", "--stratify", "layer,bit",
          "--pilot", "4", "--trials", "1500", "--shard-size", "100", "--quiet"]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file of an uninterrupted run in one go, by design."""
    from click.testing import CliRunner

    from fsim.cli import main

    folder = tmp_path_factory.mktemp("whole")
    found = {}
    for name, arguments in (("fixed", FIXED), ("strata", STRATA)):
        path = folder / f"{name}.h5"
        result = CliRunner().invoke(main, ["campaign", *arguments, "--out", str(path)])
        assert result.exit_code == 0, result.output
        found[name] = path.read_bytes()
    return found


def command(*arguments):
    return [sys.executable, "-m", "fsim", *map(str, arguments)]


def parts(path: Path) -> list[Path]:
    return sorted(Path(f"{path}.parts").glob("[0-9]*.h5"))


def test_a_campaign_run_again_is_the_same_file(fsim, whole, tmp_path):
    out = tmp_path / "again.h5"
    assert fsim("campaign", *FIXED, "--out", out, "--threads", 1).exit_code == 0
    assert out.read_bytes() == whole["fixed"]
    result = fsim("campaign", *FIXED, "--out", out)
    assert result.exit_code == 2 and "exists already" in result.stderr
    assert fsim("campaign", *FIXED, "--out", out, "--resume").exit_code == 0
    assert out.read_bytes() == whole["fixed"]
    result = fsim("campaign", *FIXED, "--seed", 1, "--out", out, "--resume")
    assert result.exit_code == 2 and "task.seed was 0, now 1" in result.stderr
    assert out.read_bytes() == whole["fixed"]


def test_whole_inferences_make_the_same_file(fsim, whole, tmp_path):
    out = tmp_path / "slow.h5"
    assert fsim("campaign", *FIXED, "--out", out, "--way", "whole").exit_code == 0
    assert out.read_bytes() == whole["fixed"]
    out = tmp_path / "tight.h5"
    assert fsim("campaign", *FIXED, "--out", out, "--memory", 1).exit_code == 0
    assert out.read_bytes() == whole["fixed"]


@pytest.mark.parametrize("design, arguments", [("fixed", FIXED), ("strata", STRATA)])
def test_processes_make_the_same_file(fsim, whole, tmp_path, design, arguments):
    out = tmp_path / "loky.h5"
    result = fsim("campaign", *arguments, "--out", out, "--engine", "loky", "--workers", 2)
    assert result.exit_code == 0, result.output
    assert out.read_bytes() == whole[design]


def test_parts_that_ran_apart_merge_into_the_same_file(fsim, whole, tmp_path):
    files = [tmp_path / f"part{k}.h5" for k in (1, 2, 3)]
    for k, file in enumerate(files, 1):
        result = fsim("campaign", *FIXED, "--shard", f"{k}/3", "--out", file, "--json")
        assert result.exit_code == 0 and json.loads(result.stdout)["trials"] == 300
    out = tmp_path / "all.h5"
    result = fsim("merge", files[2], files[0], "--out", out)
    assert result.exit_code == 3 and "300 of 900 faults are missing" in result.stdout
    result = fsim("merge", *files, "--out", out)
    assert result.exit_code == 2 and "exists already" in result.stderr
    assert fsim("merge", files[1], files[2], files[0], "--out", out, "--overwrite").exit_code == 0
    assert out.read_bytes() == whole["fixed"]
    result = fsim("merge", files[0], out, "--out", tmp_path / "no.h5")
    assert result.exit_code == 2 and "is in more than one" in result.stderr
    other = tmp_path / "other.h5"
    fsim("campaign", *FIXED, "--seed", 7, "--shard", "2/3", "--out", other)
    result = fsim("merge", files[0], other, "--out", tmp_path / "no.h5")
    assert result.exit_code == 2 and "seed was 0, now 7" in result.stderr
    assert not (tmp_path / "no.h5").exists()
    result = fsim("campaign", *STRATA, "--shard", "1/2", "--out", tmp_path / "no.h5")
    assert result.exit_code == 2 and "known before it runs" in result.stderr


@pytest.mark.slow
def test_a_dask_cluster_makes_the_same_file(fsim, whole, tmp_path):
    distributed = pytest.importorskip("distributed")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None,
            scheduler_port=0,
        ) as cluster:  # fmt: skip
            for design, arguments in (("fixed", FIXED), ("strata", STRATA)):
                out = tmp_path / f"{design}.h5"
                result = fsim("campaign", *arguments, "--out", out, "--engine", "dask",
                              "--scheduler", cluster.scheduler_address)  # fmt: skip
                assert result.exit_code == 0, result.output
                assert out.read_bytes() == whole[design]


def test_engines_say_what_they_need(fsim, tmp_path):
    base = ["campaign", *FIXED, "--out", tmp_path / "no.h5"]
    for more, said in (
        (["--engine", "dask"], "--scheduler belongs to --engine dask"),
        (["--scheduler", "tcp://127.0.0.1:1"], "--scheduler belongs to --engine dask"),
        (["--workers", 2], "--workers belongs to --engine loky"),
        (["--engine", "dask", "--scheduler", "nonsense"], "address of a running Dask scheduler"),
    ):
        result = fsim(*base, *more)
        assert result.exit_code == 2 and said in result.stderr, result.output
    assert not list(tmp_path.iterdir())


def slowed(tmp_path, seconds: float) -> dict:
    """An environment in which every shard takes longer, so that kills fall in the middle."""
    (tmp_path / "sitecustomize.py").write_text(
        "import time\n"
        "def slow():\n"
        "    from fsim.campaign.campaign import Campaign\n"
        "    shard = Campaign.shard\n"
        "    def late(self, trials):\n"
        f"        time.sleep({seconds})\n"
        "        return shard(self, trials)\n"
        "    Campaign.shard = late\n"
        "import builtins, sys\n"
        "class Hook:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'fsim.campaign.execute':\n"
        "            sys.meta_path.remove(self)\n"
        "            slow()\n"
        "        if name == 'fsim.campaign.worker' and 'loky' in ' '.join(sys.orig_argv):\n"
        "            pass\n"
        "sys.meta_path.insert(0, Hook())\n"
    )
    return {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("design, arguments", [("fixed", FIXED), ("strata", STRATA)])
def test_a_killed_campaign_resumes_to_the_same_file(
    fsim, whole, tmp_path, number, design, arguments
):
    out = tmp_path / "killed.h5"
    process = subprocess.Popen(
        command("campaign", *arguments, "--out", out), env=slowed(tmp_path, 0.6),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: parts(out), process)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    code = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    assert process.returncode == code
    assert not out.exists() and parts(out)
    if number != signal.SIGKILL:
        assert "stopping after the shard" in stderr and "--resume" in stderr
        assert "trials are kept" in stderr
    result = fsim("campaign", *arguments, "--out", out)
    assert result.exit_code == 2 and "unfinished" in result.stderr
    assert fsim("campaign", *arguments, "--out", out, "--resume").exit_code == 0
    assert out.read_bytes() == whole[design]
    assert not Path(f"{out}.parts").exists()


@pytest.mark.slow
def test_a_killed_worker_costs_its_shard(whole, tmp_path):
    out = tmp_path / "worker.h5"
    process = subprocess.Popen(
        command("campaign", *FIXED, "--out", out, "--engine", "loky", "--workers", 2),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip

    def workers():
        listed = subprocess.run(
            ["ps", "-eww", "-o", "pid,ppid,args"], capture_output=True, text=True
        ).stdout.splitlines()  # fmt: skip
        found = [line.split(None, 2) for line in listed[1:]]
        return [
            int(pid)
            for pid, parent, text in found
            if int(parent) == process.pid and "loky" in text and "resource" not in text
        ]

    wait_for(lambda: len(workers()) == 2, process)
    time.sleep(0.5)
    os.kill(workers()[0], signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=180)
    assert process.returncode == 0, stderr
    assert out.read_bytes() == whole["fixed"]


class Engine:
    """An engine of made-up workers that die when told to."""

    class Died(Exception):
        pass

    window = 3

    def __init__(self, deaths=0):
        self.deaths, self.started, self.dropped = deaths, 0, 0

    def submit(self, trials):
        engine = self

        class Future:
            def result(self):
                if engine.deaths:
                    engine.deaths -= 1
                    raise Engine.Died("lost")
                return _result(trials)

        return Future()

    def restart(self):
        self.started += 1

    def drop(self, futures):
        self.dropped += len(futures)


def _result(trials):
    import numpy as np

    from fsim.simulator.trace import OUTCOME
    from fsim.types import FAULT

    rows, table = np.zeros(len(trials), FAULT), np.zeros(len(trials), OUTCOME)
    rows["trial"] = table["trial"] = trials
    table["outcome"] = np.where(trials % 10 == 7, 3, 0)
    return rows, table


def _run(engine, rule, allocation=None, stopping=lambda: False):
    import numpy as np

    design = Design(
        rule, (10_000,), lambda h, a, b: np.arange(a, b), allocation, 30, 16
    )  # fmt: skip
    tally, written = Tally(1, 1, "sdc_critical"), []
    nothing = R.Stored(np.zeros(0, np.int64), np.zeros((0, 1), np.uint8))
    R.run(
        design, lambda t: (np.zeros(len(t), np.int64), t), tally, engine, stored=nothing,
        write=lambda rows, table: written.extend(table["trial"].tolist()), stopping=stopping,
    )  # fmt: skip
    return tally, written


def test_workers_that_die_are_started_again_and_nothing_is_counted_twice():
    rule = Rule("fixed", "sdc_critical", 0, 0.95, 1000)
    engine = Engine(deaths=3)
    tally, written = _run(engine, rule, Allocation((100,)))
    assert written == list(range(100)) and tally.total == 100 and engine.started == 3
    with pytest.raises(FsimError, match="workers died 4 times"):
        _run(Engine(deaths=4), rule, Allocation((100,)))


def test_the_kth_failure_ends_a_campaign_at_its_very_trial():
    engine = Engine()
    tally, written = _run(engine, Rule("failures", "sdc_critical", 5, 0.95, 10_000))
    # Failures are trials 7, 17, .. 47: in the third shard of 16, others were under way.
    assert written == list(range(48)) and tally.total == 48
    assert int(tally.of("sdc_critical")[0]) == 5


def test_a_wish_to_stop_finishes_what_is_under_way():
    asked = []

    def stopping():
        asked.append(True)
        return len(asked) > 2

    with pytest.raises(R.Interrupted):
        _run(Engine(), Rule("fixed", "sdc_critical", 0, 0.95, 1000), Allocation((160,)), stopping)


@pytest.mark.skipif(not hasattr(os, "statvfs") or os.geteuid() != 0, reason="needs a small disk")
@pytest.mark.slow
def test_a_full_disk_keeps_what_is_done(fsim, whole, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk])
    if made.returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        out = disk / "full.h5"
        long = [*FIXED[: FIXED.index("900")], "40000", *FIXED[FIXED.index("900") + 1 :]]
        result = fsim("campaign", *long, "--out", out)
        assert result.exit_code == 2 and "No space left" in result.stderr
        assert not out.exists()
        subprocess.run(["mount", "-o", "remount,size=40m", disk], check=True)
        assert fsim("campaign", *long, "--out", out, "--resume").exit_code == 0
        assert len(read_results(out).trials) == 40_000
    finally:
        subprocess.run(["umount", disk])
