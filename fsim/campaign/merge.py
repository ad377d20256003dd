"""Parts of one campaign, run apart, as one file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fsim.errors import TraceError
from fsim.files import check_output
from fsim.simulator.trace import merge_traces
from fsim.simulator.trace_format import first_difference

from .results import Results, read_results


def merge(paths: list[Path], out: Path, *, overwrite: bool = False) -> Results:
    """Write the trials of several files of one campaign as one file, and read it back.

    The same bytes as the file of a campaign that ran in one go on like machines. Raises
    TraceError if the files are not parts of one campaign or share trials.
    """
    check_output(out)
    parts = [read_results(path) for path in paths]
    if not parts:
        raise TraceError("a merge needs at least one file")
    for part in parts[1:]:
        difference = first_difference(parts[0].task, part.task)
        if difference:
            raise TraceError(f"{part.path} is of another campaign than {parts[0].path}: "
                             f"{difference}")  # fmt: skip
    numbers, counts = np.unique(np.concatenate([part.trials for part in parts]), return_counts=True)
    if (counts > 1).any():
        raise TraceError(f"trial {int(numbers[counts > 1][0])} is in more than one of the files")
    if out.exists() and not overwrite:
        raise TraceError(f"{out} exists already: --overwrite it or name another")
    merge_traces([part.path for part in parts], out, [part.trace for part in parts])
    return read_results(out)
