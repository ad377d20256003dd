"""Experiments of FTT-NAS (arXiv 2003.10375), sized for two cores; results are committed."""
