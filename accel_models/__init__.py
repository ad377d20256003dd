"""Accelerators as data: descriptions, schedules and cycle-level models."""
