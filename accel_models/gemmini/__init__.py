"""`gemmini-like`: the double-buffered Gemmini mesh, output and weight stationary."""
