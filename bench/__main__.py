"""`python -m bench [NAME ...]`: run every `bench_NAME.py` of this folder, or those named.

Each module has `main(quick)`, which returns `Figure`s. They are printed as tables and
written as JSON and as a picture; `--docs FILE` makes a document of them. The exit code is 1
if a benchmark failed to run. A missed limit is shown, not an error: machines differ.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from pathlib import Path

from . import picture, report
from .figures import table

FOLDER = Path(__file__).resolve().parent
OUT = FOLDER.parent / "out" / "bench"


def names() -> list[str]:
    """NAME of every bench_NAME.py, sorted."""
    return sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m bench", description=__doc__.split("\n")[0])
    add = made.add_argument
    add("names", metavar="NAME", nargs="*", help=f"of {', '.join(names())}; default: all")
    add("--quick", action="store_true", help="few and short rounds")
    add("--json", metavar="FILE", default=OUT / "bench.json", type=Path,
        help="where results go (default out/bench/bench.json)")  # fmt: skip
    add("--picture", metavar="FILE", type=Path,
        help="its kind by its ending (default: bench.png beside the JSON)")  # fmt: skip
    add("--docs", metavar="FILE", type=Path,
        help="write a Markdown document as well, and its picture, .svg, beside it")  # fmt: skip
    add("--from", metavar="FILE", dest="given", type=Path,
        help="run nothing: take the results of this JSON")  # fmt: skip
    return made


def measure(name: str, quick: bool) -> report.Section:
    """Run one benchmark; one that fails must not hide the others."""
    before, start = report.current_load(), time.perf_counter()
    section = report.Section(name)
    try:
        module = importlib.import_module(f"bench.bench_{name}")
        section.about = module.__doc__
        section.notes = tuple(getattr(module, "NOTES", ()))
        section.figures = module.main(quick)
    except Exception as error:
        section.error = f"{type(error).__name__}: {error}"
    section.seconds = time.perf_counter() - start
    section.load = before, report.current_load()
    return section


def show(section: report.Section) -> None:
    """Print one benchmark's table."""
    for part in report.parts(section.figures):
        print(table(part) + "\n")
    for line in (*section.notes, *report.figure_notes(section)):
        print(f"- {line}")
    if section.error:
        print(f"failed: {section.error}")
    before, after = (report.load_text(value) for value in section.load)
    print(f"({section.seconds:.1f} s; load {before} before, {after} after)", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run, print, write; 1 if a benchmark failed, 2 if the arguments are wrong."""
    given = parser().parse_args(arguments)
    unknown = sorted(set(given.names) - set(names()))
    if unknown:
        text = f"a benchmark must be one of {', '.join(names())}, got {', '.join(unknown)}"
        print(f"Error: {text}", file=sys.stderr)
        return 2
    if given.given:
        try:
            run = report.read_json(given.given)
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"Error: {given.given} holds no results: {error}", file=sys.stderr)
            return 2
    else:
        run = report.begin(given.quick)
        print(report.head(run))
        print(f"load: {report.load_text(report.current_load())}")
        for name in given.names or names():
            print(f"\n== {name} ==", flush=True)
            run.sections.append(measure(name, given.quick))
            show(run.sections[-1])
        report.write_json(run, given.json)
    print("\n== against limits and rivals ==")
    print(report.summary(run))
    write_pictures(run, given)
    return 1 if any(section.error for section in run.sections) else 0


def write_pictures(run: report.Run, given: argparse.Namespace) -> None:
    """The picture, and the document with its own; prints what was written."""
    written = [] if given.given else [given.json]
    if given.picture or not given.given:
        path = given.picture or given.json.with_name("bench.png")
        if picture.draw(run, path):
            written.append(path)
    if given.docs:
        beside = given.docs.with_suffix(".svg")
        drawn = picture.draw(run, beside)
        report.write_document(run, given.docs, beside.name if drawn else "")
        written += [given.docs, beside] if drawn else [given.docs]
    print("written: " + ", ".join(os.path.relpath(path) for path in written))


if __name__ == "__main__":
    sys.exit(main())
