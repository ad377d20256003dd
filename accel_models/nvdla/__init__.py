"""`nvdla-small-like`: the convolution core of NVDLA nv_small, atomic-C x atomic-K."""

from ..families import Family

# The RTL these were checked against multiplies signed codes and saturates sums.
FAMILY = Family(
    name="nvdla",
    dataflows=("dc",),
    overflow=("saturate",),
    truncates=True,
    parameters={"stripe": (16, 1, 64), "delivered_bits": (32, 8, 48)},
    evidence="RTL vectors of NVDLA nv_small (CMAC and CACC), 8x8",
)
