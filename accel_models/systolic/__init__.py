"""`systolic`: the default machine, any rows x cols, weight, output and input stationary."""

from ..families import Family

FAMILY = Family(
    name="systolic",
    dataflows=("ws", "os", "is"),
    overflow=("wrap", "saturate"),
    unsigned_acts=(False, True),
    evidence="our own SystemVerilog, os, ws and is (make verify-rtl)",
    parameters={"sequencer": (0, 0, 1)},
)
