"""Errors that fsim raises on purpose.

Every message says what must hold, what was got and where. The command line
turns each of them into one line and exit code 2.
"""


class FsimError(Exception):
    """Base of every error that a user can cause and mend."""


class ConfigError(FsimError, ValueError):
    """An accelerator, network, data set or option is not valid."""


class MappingError(FsimError, ValueError):
    """An operation or a shape cannot be placed on the accelerator."""


class FaultError(FsimError, ValueError):
    """A fault lies outside the machine, the schedule or a backend's domain."""


class HangError(FaultError):
    """A fault keeps the machine from giving a result within twice its schedule."""


class TraceError(FsimError, OSError):
    """A trace file is damaged, hostile or not a trace."""


class TraceTooNewError(TraceError):
    """A trace was written by a later version of the format."""
