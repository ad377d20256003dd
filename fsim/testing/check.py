"""A named check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One thing that must hold; call it.

    name  of the check, as pytest shows it
    run   raises AssertionError if it does not hold
    """

    name: str
    run: Callable[[], None]

    def __call__(self) -> None:
        self.run()

    def __str__(self) -> str:
        return self.name


def require(holds: bool, message: str) -> None:
    """AssertionError with the message unless it holds; works under `python -O` too."""
    if not holds:
        raise AssertionError(message)
