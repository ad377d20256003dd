"""Code of other distributions: what it raises becomes one line that says whose fault it is.

Plug-ins come through the entry-point groups of `accel_models.families`,
`fault_models.families` and `simulator.criteria`. Their mistakes are neither the user's nor
fsim's: whoever runs them must read which plug-in it was, and see no other result.
"""

from __future__ import annotations

import traceback
from contextlib import contextmanager
from functools import wraps

from .errors import ConfigError, FsimError

_OTHERS = {"fsim", "importlib", "contextlib", "numpy", "numba", "torch"}
"""Packages in which an error is raised because of what their caller gave them."""


def blamed(error: BaseException) -> str:
    """`error` as "TypeError: what (module, line 3)", the place being the plug-in's own."""
    text = " ".join(str(error).split())
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__"))
        if module.partition(".")[0] not in _OTHERS:
            place = f" ({module}, line {line})"
    return said + place


@contextmanager
def fenced(what: str, kind: type[FsimError] = ConfigError):
    """Run code of the plug-in that messages call `what`.

    Raises `kind` for whatever it raises, but for errors that are fsim's own (FsimError) and
    for a lack of memory. SystemExit counts too: a plug-in does not end the program.
    """
    try:
        yield
    except (FsimError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise kind(f"{what} must run without an error of its own, got {blamed(error)}") from error


def fenced_function(function, what: str, kind: type[FsimError] = ConfigError):
    """`function` that raises as `fenced` does."""

    @wraps(function)
    def run(*arguments, **options):
        with fenced(what, kind):
            return function(*arguments, **options)

    return run
