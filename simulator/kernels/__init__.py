"""Compiled kernels. They import numba, numpy and each other, and allocate what they return."""
