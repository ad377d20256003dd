"""The command line. This package imports click alone until a command runs."""

from fsim.cli.group import cli as main

__all__ = ["main"]
