"""Campaigns: many single faults, chosen by a design, and what they say of all of them."""
