"""The results of a run as one value: to and from JSON, as text, as a document.

A run says what machine it was on, with which versions and at what load; a figure without
them says nothing.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import fsim
from fsim.files import atomic_write
from fsim.machine import cpu_model, cpus, int8_instructions, load

from .figures import MISSED, MISSED_AIM, Figure, markdown, table

FORMAT, VERSION = "fsim-bench", 1
PACKAGES = ("torch", "numpy", "numba", "llvmlite", "scipy")
IDLE = 0.5
"""Load up to which a machine counts as free."""
ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Section:
    """One benchmark of a run.

    about  its module's docstring; notes what else a reader must know
    error  why it failed; "" if it did not
    load   mean number of processes running or waiting in the minute before and after
    """

    name: str
    about: str = ""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    load: tuple[float | None, float | None] = (None, None)
    error: str = ""
    figures: list[Figure] = field(default_factory=list)


@dataclass
class Run:
    """Everything that a run of the benchmarks found.

    machine   CPU, CPUs and so on, by name; versions of what computes
    quick     few rounds, short: not to be compared with other runs
    """

    date: str
    machine: dict[str, str]
    versions: dict[str, str]
    quick: bool = False
    sections: list[Section] = field(default_factory=list)

    @property
    def figures(self) -> list[Figure]:
        return [figure for section in self.sections for figure in section.figures]

    def to_json(self) -> dict:
        sections = [
            {**asdict(section), "figures": [figure.to_json() for figure in section.figures]}
            for section in self.sections
        ]
        return {"format": FORMAT, "version": VERSION, **asdict(self), "sections": sections}

    @classmethod
    def from_json(cls, data: dict) -> Run:
        """The inverse; ValueError for another format or version."""
        if (data.get("format"), data.get("version")) != (FORMAT, VERSION):
            raise ValueError(
                f"the file must be of format {FORMAT} {VERSION}, "
                f"got {data.get('format')} {data.get('version')}"
            )
        sections = [
            Section(**{
                **given, "notes": tuple(given["notes"]), "load": tuple(given["load"]),
                "figures": [Figure.from_json(figure) for figure in given["figures"]],
            })
            for given in data["sections"]
        ]  # fmt: skip
        given = {name: data[name] for name in ("date", "machine", "versions", "quick")}
        return cls(**given, sections=sections)


def current_load() -> float | None:
    """Mean number of processes running or waiting in the last minute; None if unknown."""
    found = load()
    return found[0] if found else None


def begin(quick: bool) -> Run:
    """An empty run of this moment, machine and installation."""
    now = datetime.datetime.now(datetime.UTC)
    machine = {
        "CPU": cpu_model(),
        "CPUs": str(cpus()),
        "int8 instructions": ", ".join(int8_instructions()) or "none known",
        "system": f"{platform.system()} {platform.machine()}",
    }
    versions = {"fsim": f"{fsim.__version__}{commit()}", "Python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    return Run(now.strftime("%Y-%m-%d %H:%M UTC"), machine, versions, quick)


def commit() -> str:
    """The checkout's commit, and whether files differ from it; "" where git does not tell."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return f", commit {git('rev-parse', '--short', 'HEAD')}" + (", changed" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def write_json(run: Run, path: str | os.PathLike) -> None:
    _write(path, json.dumps(run.to_json(), indent=1) + "\n")


def read_json(path: str | os.PathLike) -> Run:
    """A run that was written; ValueError or OSError if it cannot be read."""
    return Run.from_json(json.loads(Path(path).read_text("utf-8")))


def _write(path: str | os.PathLike, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(text.encode())


# --- as text ---


def judged(figures: Sequence[Figure]) -> list[Figure]:
    """Those with a limit or something beside them."""
    return [figure for figure in figures if figure.verdict or figure.others]


def parts(figures: Sequence[Figure]) -> list[list[Figure]]:
    """Those with a limit or something beside them, and the others: tables of their own."""
    first = judged(figures)
    rest = [figure for figure in figures if figure not in first]
    return [part for part in (first, rest) if part]


def missed(figures: Sequence[Figure]) -> list[Figure]:
    return [figure for figure in figures if figure.verdict in (MISSED, MISSED_AIM)]


def busy(run: Run) -> str:
    """A warning if the machine did other work when the run began; "" if it did not."""
    before = run.sections[0].load[0] if run.sections else None
    if before is None or before <= IDLE:
        return ""
    return (
        f"The machine was busy: load {before:.2f} before the first benchmark. Threads of torch, "
        "which the rivals use, wait for one another then, and ratios to several of them come out "
        "too good; ratios on one thread are fair, and absolute figures too low."
    )


def load_text(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def head(run: Run) -> str:
    """Machine and versions, for a terminal."""
    lines = [f"{name}: {value}" for name, value in run.machine.items()]
    lines.append("versions: " + ", ".join(f"{k} {v}" for k, v in run.versions.items()))
    return "\n".join(lines)


def summary(run: Run) -> str:
    """All figures with a limit or a rival, and what was missed, for a terminal."""
    chosen = judged(run.figures)
    lines = [table(chosen)] if chosen else []
    lost = missed(run.figures)
    lines.append(f"{len(lost)} of {sum(1 for f in chosen if f.verdict)} limits missed")
    lines += [f"  {figure.name}: {figure.verdict}" for figure in lost]
    lines += [f"  {s.name} failed: {s.error}" for s in run.sections if s.error]
    lines += [busy(run)] if busy(run) else []
    return "\n".join(lines)


# --- as a document ---


def document(run: Run, picture: str = "") -> str:
    """Markdown of a run; `picture` is the path of its picture as seen from the document."""
    title = ["# Benchmarks", ""]
    title += [
        _wrapped(
            "The last committed run of `make bench BENCH='--docs docs/benchmarks.md'`, which "
            "writes this page and its picture anew. `make bench` alone measures, prints the same "
            "tables and writes `out/bench/bench.json`, with every round, and `bench.png`. Figures "
            "of two runs, machines or loads cannot be compared; ratios can where the machine did "
            "nothing else, because what they are of took turns."
        ),
        "",
        _wrapped(
            "A value is the median of its rounds, *rounds* the least and the greatest. Where "
            "something stands beside it, floor and aim are about the ratio. A missed limit is "
            "in bold."
        ),
    ]
    if busy(run):
        title += ["", _wrapped(f"**{busy(run)}**")]
    if run.quick:
        title += ["", "**Quick run**: few and short rounds, for a look only."]
    facts = {"date": run.date, **run.machine, **run.versions}
    about = ["", "| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in facts.items())]
    about += [
        f"| load at {section.name} | {load_text(section.load[0])} before, "
        f"{load_text(section.load[1])} after |"
        for section in run.sections
    ]
    about += [
        "",
        _wrapped(
            "Load is the mean number of processes that ran or waited in the minute before. The "
            "benchmarks' own are in it: what else the machine did, the first one tells."
        ),
    ]
    lines = [*title, *about]
    chosen = judged(run.figures)
    if chosen:
        lines += ["", "## Against limits and rivals", ""]
        lines += [f"![Figures against limits and rivals]({picture})", ""] if picture else []
        lines.append(markdown(chosen))
        sources = {f.source: None for f in chosen if f.source}
        lines += ["", _wrapped("Limits: " + "; ".join(sources) + ".")] if sources else []
    for section in run.sections:
        lines += ["", f"## {section.name}", "", *_section(section)]
    return "\n".join(lines) + "\n"


def _section(section: Section) -> list[str]:
    lines = [section.about.strip()]
    for note in section.notes:
        lines += ["", _wrapped(note)]
    lines.append("")
    if section.error:
        lines += [f"**Failed**: {section.error}", ""]
    for part in parts(section.figures):
        lines += [markdown(part), ""]
    lines += [_wrapped(f"- {note}", 2) for note in figure_notes(section)]
    lines += ["", f"Took {section.seconds:.0f} s."]
    return lines


def figure_notes(section: Section) -> list[str]:
    """Each note once, with the figures that it is of."""
    notes: dict[str, list[str]] = {}
    for figure in section.figures:
        if figure.note:
            notes.setdefault(figure.note, []).append(figure.name)
    return [f"{', '.join(dict.fromkeys(names))}: {note}" for note, names in notes.items()]


def _wrapped(text: str, indent: int = 0) -> str:
    return textwrap.fill(
        text, 100, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )


def write_document(run: Run, path: str | os.PathLike, picture: str = "") -> None:
    _write(path, document(run, picture))
