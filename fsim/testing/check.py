"""A named check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One thing that must hold; call it.

    name  of the check, as pytest shows it
    run   raises AssertionError if it does not hold; any other exception of it counts as one
    """

    name: str
    run: Callable[[], None]

    def __call__(self) -> None:
        try:
            self.run()
        except AssertionError:
            raise
        except Exception as error:  # what is judged is someone's new code
            raise AssertionError(
                f"{self.name} must run without an exception, got {type(error).__name__}: {error}"
            ) from error

    def __str__(self) -> str:
        return self.name


def require(holds: bool, message: str) -> None:
    """AssertionError with the message unless it holds; works under `python -O` too."""
    if not holds:
        raise AssertionError(message)
