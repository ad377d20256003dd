"""`eyeriss-like`: row stationary, one row of a convolution in each PE.

schedule.py  components, the cycles of a pass, storage
mapping.py   which rows, channels and filters of a layer each PE does in which pass
cycle.py     one PE, edge by edge, plain Python
array.py     the whole array, PE by PE, plain Python
tile.py      compiled: one PE in one pass
layer.py     whole layers with faults
"""

from ..families import Family

FAMILY = Family(
    name="eyeriss",
    dataflows=("rs",),
    short_products=True,
    layers=True,
    parameters={
        "ifmap_words": (12, 1, 1024),
        "filter_words": (224, 1, 65536),
        "psum_words": (24, 1, 1024),
    },
    evidence="RTL vectors of one PE (eyeriss_pe); the array is not checked against RTL",
)
