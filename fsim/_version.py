"""The one place that states the version; `setup.cfg` reads it."""

__version__ = "0.1.0"
