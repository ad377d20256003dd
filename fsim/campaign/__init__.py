"""Campaigns as a user states them: from a task to a finished file."""
