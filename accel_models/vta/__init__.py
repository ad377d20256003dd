"""`vta-like`: one vector times one matrix an operation, dot products in adder trees.

Made from the sources of VTA (apache/tvm-vta, hardware/chisel TensorGemm.scala, and
config/vta_config.json); see `cycle.py` for what is stated there and what is read into it.
"""

from ..families import Family

FAMILY = Family(
    name="vta",
    dataflows=("ws",),
    parameters={
        # Cycles from one operation of the core to the next: 1 as a pipeline, 4 in the state
        # machine of TensorGemmOrig (read micro-op, add indices, read tensors, execute).
        "issue_cycles": (1, 1, 16),
    },
)
