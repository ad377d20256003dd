"""`gemmini-like`: the double-buffered Gemmini mesh, output and weight stationary."""

from ..families import Family

# The RTL these were checked against wraps and multiplies signed codes.
FAMILY = Family(
    name="gemmini",
    dataflows=("os", "ws"),
    evidence="RTL vectors of the Gemmini mesh, os 4x4 and 8x8, ws 4x4",
)
