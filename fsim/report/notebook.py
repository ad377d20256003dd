"""A campaign as a notebook shows it."""

from __future__ import annotations

from fsim.campaign.results import Results

from .numbers import report_numbers
from .page import fragment


def repr_html(results: Results) -> str:
    """HTML that a notebook shows for a campaign: the headline, outcomes and where they come from.

    The network is not opened: worst faults are left to `fsim report`.
    """
    return fragment(report_numbers([results], follow=False))
