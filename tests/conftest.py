"""Fixtures that several test files share."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from fsim.cli import main


@pytest.fixture
def fsim():
    """Run `fsim ARGUMENTS` in this process: a result with exit_code, stdout and stderr.

    An exception that the command line does not turn into a message fails the test.
    """

    def run(*arguments: object):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run
