"""Contract tests for authors of plug-ins: what fsim relies on, as checks to run under pytest.

    import pytest
    from fsim.testing import accelerator_contract

    @pytest.mark.parametrize("check", accelerator_contract("my-family"), ids=str)
    def test_contract(check):
        check()

Every check is called without arguments and raises AssertionError with what must hold and what
was got. pytest is not needed to run them.
"""

from __future__ import annotations

from .accelerator import accelerator_contract
from .check import Check
from .criterion import criterion_contract
from .fault_model import fault_model_contract

__all__ = ["Check", "accelerator_contract", "criterion_contract", "fault_model_contract"]
