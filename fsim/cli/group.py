"""The `fsim` command: subcommands loaded when they run, errors turned into one line.

Exit codes: 0 done, 1 failure (a check failed, memory ran out), 2 what the user asked
for is not valid or cannot be written where it should go (a full disk), 3 incomplete,
4 an acceptance threshold was not met, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import threading
from contextlib import contextmanager, suppress

import click

from fsim._version import __version__
from fsim.cli.lazy import LazyGroup
from fsim.errors import FsimError

COMMANDS: dict[str, tuple[str, str]] = {
    "inject": ("fsim.cli.inject:inject", "Faults in a network: accuracy, outcomes, curve."),
    "campaign": ("fsim.cli.campaign:campaign", "How likely a fault matters, with an interval."),
    "train": ("fsim.cli.train:train", "Train a network to bear faults."),
    "calibrate": ("fsim.cli.calibrate:calibrate", "Statistical models that a machine amounts to."),
    "curve": ("fsim.cli.curve:curve", "Accuracy at any bit error rate, from one campaign."),
    "chips": ("fsim.cli.chips:chips", "Chips with fixed faults: quantiles and yield."),
    "protect": ("fsim.cli.protect:protect", "Which bits, layers and registers to protect."),
    "fit": ("fsim.cli.fit:fit", "Failures in time (FIT), and safety metrics, of campaigns."),
    "attack": ("fsim.cli.attack:attack", "The bit flips an attacker would choose."),
    "compare": ("fsim.cli.compare:compare", "Two campaigns, fault by fault."),
    "merge": ("fsim.cli.merge:merge", "Join the parts of a campaign (--shard)."),
    "trace": ("fsim.cli.trace:trace", "Show a trace, export it as CSV or Parquet."),
    "cite": ("fsim.cli.cite:cite", "A campaign as the paragraph of a methods section."),
    "report": ("fsim.cli.report:report", "One page of campaigns, with pictures and tables."),
    "replay": ("fsim.cli.replay:replay", "Recompute every outcome of a trace from its rows."),
    "explain": ("fsim.cli.explain:explain", "What one fault of a trace did, layer by layer."),
    "faults": ("fsim.cli.faults:faults", "Hardware faults of accelerators and their models."),
    "sites": ("fsim.cli.sites:sites", "Where faults can strike: words, bits, cycles."),
    "accel": ("fsim.cli.accel:accel", "List, show and check accelerator descriptions."),
    "gemm": ("fsim.cli.gemm:gemm", "One matrix product on the array, with explicit faults."),
    "nas": ("fsim.cli.nas:nas", "Networks of the paper, genotypes, architecture search."),
    "verify": ("fsim.cli.verify:verify", "Check this installation against RTL vectors."),
    "data": ("fsim.cli.data:data", "List the data sets by name, and download them."),
    "doctor": ("fsim.cli.doctor:doctor", "Versions, CPU, threads and chosen exact paths."),
}
"""Subcommand -> (module:attribute, its line in `fsim --help`)."""

USER_ERRORS = {
    getattr(errno, name)
    for name in (
        *("ENOENT", "EACCES", "EPERM", "EISDIR", "ENOTDIR", "EEXIST", "ENOTEMPTY", "ENXIO"),
        *("ENAMETOOLONG", "ELOOP", "EROFS", "EXDEV", "ETXTBSY"),
        *("ENOSPC", "EDQUOT", "EFBIG"),
    )
    if hasattr(errno, name)
}
"""System errors that are about a path the user gave or a disk that is full: exit code 2
instead of 1."""

LONGEST = 2000
"""Characters of an error; what a hostile file or option adds beyond is cut out."""


class Terminated(BaseException):
    """SIGTERM arrived; raised so that files being written are cleaned up."""


def _terminate(signum, frame):
    raise Terminated


@contextmanager
def _terminable():
    """Turn SIGTERM into `Terminated` while a command runs (main thread only)."""
    try:
        before = signal.signal(signal.SIGTERM, _terminate)
    except ValueError:  # not the main thread: its owner handles signals
        yield
        return
    hook = sys.unraisablehook

    def again(ignored):
        """Python drops what is raised in a weak reference's callback: send the signal anew."""
        for kind, number in ((KeyboardInterrupt, signal.SIGINT), (Terminated, signal.SIGTERM)):
            if isinstance(ignored.exc_value, kind) or ignored.exc_type is kind:
                threading.Timer(0.02, os.kill, (os.getpid(), number)).start()
                return
        hook(ignored)

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, before)


class RootGroup(LazyGroup):
    """`fsim`: ends every error in one line and an exit code."""

    table = COMMANDS

    def main(self, args=None, prog_name=None, **extra):
        """Run, then exit with the code the module's docstring lists."""
        extra.pop("standalone_mode", None)
        # OpenMP threads of torch and numba that have nothing to do spin by default for
        # milliseconds: on a busy machine that made a training three times slower.
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
        sys.exit(self._run(args, prog_name or "fsim", extra))

    def _run(self, args, prog_name, extra) -> int:
        try:
            with _terminable():
                result = super().main(args, prog_name, standalone_mode=False, **extra)
                sys.stdout.flush()  # a full disk behind a pipe shows up here, not at exit
            return result if isinstance(result, int) else 0
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            return error.exit_code
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else prog_name
            return _fail(f"{error.format_message()} (see {command} --help)", 2)
        except click.ClickException as error:
            return _fail(error.format_message(), error.exit_code)
        except FsimError as error:
            return _fail(_noted(error, str(error)), 2)
        except BrokenPipeError:  # `fsim ... | head`: nobody is left to read
            _discard_stdout()
            return 1
        except OSError as error:
            return _fail(_noted(error, _os_error(error)), 2 if error.errno in USER_ERRORS else 1)
        except RecursionError:
            return _fail("the input must not be nested so deeply", 2)
        except MemoryError as error:
            text = f"there is not enough memory ({error})".replace(" ()", "")
            return _fail(_noted(error, text), 1)
        except (click.Abort, KeyboardInterrupt) as error:
            # click raises Abort in place of the KeyboardInterrupt that has the notes.
            return _fail(_noted(error.__cause__ or error, "interrupted"), 130)
        except Terminated as error:
            return _fail(_noted(error, "terminated"), 143)


def _fail(message: str, code: int) -> int:
    """Print `message` on stderr as one line that cannot steer a terminal."""
    with suppress(OSError):  # stderr may be on the disk that is full
        click.echo("Error: " + one_line(message), err=True)
    return code


def one_line(message: str) -> str:
    """`message` without line ends and control characters, and not without end."""
    text = "; ".join(line.strip() for line in message.splitlines() if line.strip())
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    if len(text) > LONGEST:
        half = LONGEST // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return text


def _noted(error: BaseException, message: str) -> str:
    """The message and what was noted on the way: what was kept, how to go on."""
    return "; ".join([message, *getattr(error, "__notes__", ())])


def _os_error(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    return f"{reason}: {error.filename}" if error.filename else reason


def _discard_stdout():
    """Keep the interpreter from complaining about the closed pipe at exit."""
    try:
        sys.stdout.close()
    except OSError:
        sys.stdout = None


@click.group(
    cls=RootGroup,
    name="fsim",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="fsim", message="%(prog)s %(version)s")
@click.option("-v", "--verbose", count=True, help="Say more on stderr; twice for debugging.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing on stderr but errors.")
def cli(verbose: int, quiet: bool):
    """Hardware-accurate fault simulation of deep-learning accelerators.

    Results go to stdout, progress and errors to stderr.
    """
    level = logging.ERROR if quiet else max(logging.DEBUG, logging.WARNING - 10 * verbose)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    logging.getLogger("fsim").setLevel(level)
