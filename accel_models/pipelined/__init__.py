"""`pipelined-systolic`: four register stages a PE, output and weight stationary."""

from ..families import Family

# The RTL these were checked against wraps and multiplies signed codes.
FAMILY = Family(
    name="pipelined",
    dataflows=("os", "ws"),
    evidence="RTL vectors of Systolic-Tensors, os and ws, 4x4 and 8x8",
)
