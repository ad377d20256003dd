"""The documentation site: its commands run and print what it shows, its links lead somewhere."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from docs_tools import cli, fill
from docs_tools.pages import (
    DOCS,
    ROOT,
    Block,
    agrees,
    anchors,
    blocks,
    comparable,
    links,
    resembles,
    steps,
)  # fmt: skip
from docs_tools.shell import Shell
from fsim.cli import main

RUN = (
    "index.md", "tutorial.md", "campaigns.md", "semantics.md", "how-we-know.md", "cycles.md",
    "how-to/my-model.md", "how-to/my-accelerator.md", "how-to/my-rtl-vectors.md",
    "how-to/row-stationary.md", "how-to/verify-against-rtl.md",
    "how-to/my-fault-model.md", "how-to/cluster.md", "how-to/fit.md", "rates.md",
    "memories.md", "reference/python.md",
)  # fmt: skip
"""Pages whose blocks are run."""

ELSEWHERE = {
    "search.md": "test_docs_search.py", "report.md": "test_report.py",
    "how-to/add-an-accelerator.md": "test_plugins.py",
}  # fmt: skip
"""Pages whose commands another test runs."""

INDENTED = {
    "accelerators.md": {"inject": "--images 2 --trials 1 --no-curve"},
    "calibrate.md": {"calibrate": "--trials 2", "train": "--epochs 1 --images 64"},
    "faults.md": {"inject": "--images 8 --trials 1"},
    "networks.md": {"inject": "--images 2 --trials 1 --no-curve"},
    "vectors.md": {"verify": "--every 100 --seconds 0 --backend replay"},
}
"""Pages with indented commands -> command -> what is added to it, so that it takes seconds."""

SHOWN = {"", "sh", "console", "python", "text", "yaml", "json", "toml"}
EXEMPT = 3
"""Blocks that no test can run, on all pages together."""


def pages() -> list[Path]:
    return sorted(DOCS.rglob("*.md"))


def read(name: str | Path) -> str:
    return (DOCS / name).read_text("utf-8")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder; modules that were imported from it are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture(scope="module")
def compare(tmp_path_factory):
    """`agrees` where this CPU calibrates as that of the pages, else `resembles`.

    Calibration is float arithmetic: other scales of the last digit give other codes, and a few
    other outcomes. The hash of the codes is in the paragraph of the tutorial.
    """
    path = str(tmp_path_factory.mktemp("codes") / "a.h5")
    for words in ([*"campaign --images 2 --trials 1 --out".split(), path], ["cite", path]):
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, done.output
    codes = re.compile(r"SHA-256 of all codes (\w+)")
    alike = codes.search(done.stdout)[1] == codes.search(read("tutorial.md"))[1]
    return agrees if alike else resembles


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_every_command_runs_and_prints_what_the_page_shows(name, folder, compare):
    shell, found = Shell(), blocks(read(name))
    for number, block in enumerate(found):
        where = f"{name}, line {block.line}"
        if block.exempt:
            continue
        if block.language in ("sh", "console"):
            _commands(block, shell, where, compare)
        elif block.language == "python":
            printed = fill.printed_by(block.text)
            below = found[number + 1] if number + 1 < len(found) else Block(0, "", "", None)
            assert below.language == "text", f"{where}: what it prints must stand below"
            assert compare(below.text, printed), f"{where} printed\n{printed}"


def indented(name: str) -> list[str]:
    return re.findall(r"^    (fsim .*)$", read(name), re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("name", INDENTED)
def test_indented_commands_run(name, folder):
    Path("out").mkdir()
    if name == "networks.md":
        _network(name)
    if name == "vectors.md":
        vectors = ROOT / "simulator" / "rtl_vectors" / "gemmini_os_4x4.npz"
        Path("mine.npz").write_bytes(vectors.read_bytes())
    commands = indented(name)
    assert set(INDENTED[name]) <= {command.split()[1] for command in commands}
    lines = [f"{command} {INDENTED[name].get(command.split()[1], '')}" for command in commands]
    _commands(Block(1, "sh", "\n".join(lines), None), Shell(), name)


def _network(name: str) -> None:
    """The example network of a page as a module, with weights and data of its shape."""
    (source,) = (block.text for block in blocks(read(name)) if block.language == "python")
    Path("mynet.py").write_text(source, "utf-8")
    torch.save(importlib.import_module("mynet").make().state_dict(), "mynet.pt")
    rng = np.random.default_rng(0)
    np.savez(
        "mydata.npz", images=rng.integers(0, 17, (20, 8, 8), np.uint8), labels=np.arange(20) % 10
    )


def test_no_other_page_has_indented_commands():
    for path in pages():
        name = str(path.relative_to(DOCS))
        if name not in {*INDENTED, *ELSEWHERE}:
            assert not indented(name), name
    for name, test in ELSEWHERE.items():
        assert f'"{name}"' in (ROOT / "tests" / test).read_text("utf-8")


def _commands(block: Block, shell: Shell, where: str, compare=agrees) -> None:
    todo = list(steps(block))
    for step, after in zip(todo, [*todo[1:], None]):
        got = shell.run(step)
        if after is None or after.command != "echo $?":
            assert shell.status == 0, f"{where}: {step.command} ended with {shell.status}\n{got}"
        if step.output is not None:
            assert compare(step.output, got), f"{where}: {step.command} printed\n{got}"


def test_blocks_are_of_known_languages_and_few_are_exempt():
    exempt = []
    for path in pages():
        for block in blocks(path.read_text("utf-8")):
            assert block.language in SHOWN, f"{path.name}, line {block.line}: {block.language}"
            if block.language in ("sh", "console"):
                assert str(path.relative_to(DOCS)) in {*RUN, *ELSEWHERE}, path
                assert list(steps(block)), f"{path.name}, line {block.line}: no command"
            if block.exempt:
                exempt.append((path.name, block.line, block.exempt))
    assert len(exempt) == EXEMPT, exempt


def test_links_lead_to_pages_and_headings():
    for path in pages():
        for target in links(path.read_text("utf-8")):
            if target.startswith(("http://", "https://")):
                continue
            file, _, anchor = target.partition("#")
            there = (path.parent / file).resolve() if file else path
            assert there.is_file(), f"{path.name} links to {target}"
            if anchor and there.suffix == ".md":
                assert anchor in anchors(there.read_text("utf-8")), f"{path.name}: {target}"


def nav_pages(entry) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    values = entry.values() if isinstance(entry, dict) else entry
    return [page for value in values for page in nav_pages(value)]


def test_every_page_is_in_the_navigation_once():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    found = nav_pages(config["nav"])
    assert sorted(found) == sorted(str(path.relative_to(DOCS)) for path in pages())


def test_the_command_reference_is_that_of_the_commands():
    assert cli.PAGE.read_text("utf-8") == cli.page(), "run python -m docs_tools.cli"


def test_public_names_are_in_the_python_reference():
    import fsim

    named = set(re.findall(r"`fsim\.(\w+)", read("reference/python.md")))
    assert set(fsim.__all__) <= named


def test_files_that_pages_name_exist():
    for path in pages():
        text = path.read_text("utf-8")
        for name in re.findall(r"`((?:tests|simulator|bench|nas|docs_tools)/[\w/]+\.\w+)`", text):
            assert (ROOT / name).is_file(), f"{path.name} names {name}"


def test_the_site_builds(tmp_path):
    pytest.importorskip("mkdocs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for path in pages():
        page = tmp_path / "site" / path.relative_to(DOCS)
        made = page.with_name("index.html") if page.stem == "index" else page.with_suffix("")
        assert made.is_file() or (made / "index.html").is_file(), made


def test_the_keys_of_campaign_files_are_those_of_the_format(fsim, tmp_path):
    section = read("trace-format.md").split("## Files of campaigns")[1].split("\n## ")[0]
    tables = re.findall(r"^\| key of `(\w+)`.*\n\|.*\n((?:\|.*\n)+)", section, re.MULTILINE)
    keys = {name: re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE) for name, rows in tables}
    path = tmp_path / "a.h5"
    done = fsim("campaign", "--fault", "flip", "--trials", 5, "--images", 4, "--out", path)
    assert done.exit_code == 0, done.output
    shown = fsim("trace", "show", path, "--rows", 0, "--json")
    task = json.loads(shown.stdout)["task"]
    assert sorted(keys["campaign"]) == sorted(task["campaign"])
    assert sorted(keys["frame"]) == sorted(task["campaign"]["frame"])
    for name in task["campaign"]["rule"]:
        assert f"`{name}`" in section


# --- the reader of pages itself ---


def test_blocks_and_steps():
    text = (
        "text\n```sh\n# a note\nfsim a \\\n    --b\ncat > x.py <<'EOF'\nif 1:\n    2\nEOF\n```\n"
        "<!-- not run: no reason -->\n```console\n$ fsim c\none\n\ntwo\n$ fsim d\n```\n"
    )
    first, second = blocks(text)
    assert (first.language, first.line, first.exempt) == ("sh", 2, None)
    assert (second.language, second.line, second.exempt) == ("console", 12, "no reason")
    a, here = steps(first)
    assert (a.command, a.output) == ("fsim a --b", None)
    assert here.here == ("x.py", "if 1:\n    2\n")
    c, d = steps(second)
    assert (c.command, c.output, d.output) == ("fsim c", "one\n\ntwo\n", "")
    with pytest.raises(ValueError, match="must end"):
        blocks("```sh\nfsim\n")


def test_outputs_agree_but_for_times_and_what_is_left_out():
    assert agrees("in 0.4 s\n...\nend\n", "in 12.0 s\nb\nc\nend\n")
    assert agrees("...\n", "") and agrees("", "")
    assert not agrees("in 0.4 s\nend\n", "in 0.4 s\nb\nend\n")
    assert not agrees("share 0.4 %\n", "share 0.5 %\n")
    assert agrees("codes 01ec725b4b10260a\n", "codes ae8326a6006a4e50\n")
    assert not agrees("", "something\n")
    assert resembles("a  0.5 %, 1,234\n...\n", "b\na 10.25 %, 9\n")
    assert not resembles("a 0.5 %\n", "a 0.5\n") and not resembles("a\n", "")
    assert comparable("about 26,338 faults a second\n") == ["about # faults a second"]


def test_a_command_that_fails_or_prints_something_else_is_found(folder):
    for text in ("fsim accel show nothing\n", "false\n"):
        with pytest.raises(AssertionError, match="ended with"):
            _commands(Block(1, "sh", text, None), Shell(), "here")
    with pytest.raises(AssertionError, match="printed"):
        _commands(Block(1, "console", "$ echo one\ntwo\n", None), Shell(), "here")
    _commands(
        Block(1, "console", "$ false\n$ echo $?\n1\n$ echo one\none\n", None), Shell(), "here"
    )


def test_links_and_anchors_are_found():
    text = "[a](b.md#c)\n```\n[no](no.md)\n```\n`[no](no.md)` [d\ne](f.md)\n# Über `--x`, 5. y\n"
    assert links(text) == ["b.md#c", "f.md"]
    assert anchors("# Your own `--x`, 5. y\n") == {"your-own---x-5-y"}
