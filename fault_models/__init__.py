"""Fault models: distributions over FAULT rows."""
