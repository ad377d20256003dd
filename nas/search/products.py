"""The products of a supernet's paths on the simulated array, made once and kept.

A path has its own products, so its array session changes with every genotype. Making
one takes a forward pass of two images and the sites' geometry; what depends only on the
shape of a product (where its words lie, how many cycles it takes) is made once for all
paths.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fsim.accel_models.accel import Accel
from fsim.nas.device import kept_random_state
from fsim.nas.space.cells import CellNetwork
from fsim.nas.space.genotype import Genotype
from fsim.nas.space.supernet import Supernet
from fsim.simulator.bridge.modes import ArrayMode, Recorder
from fsim.simulator.bridge.session import Session
from fsim.simulator.bridge.site import ArraySite, conv_site, linear_site

KEPT = 64
"""Sessions of paths that are kept; a controller comes back to the paths it likes."""

_MAKE_UNSIGNED = (F.relu, torch.relu, Tensor.relu)
_KEEP_SIGN = (F.pad, Tensor.__getitem__, F.max_pool2d, F.avg_pool2d)


class SignRecorder(Recorder):
    """A recorder that knows which activations can be negative by how they were made.

    What a ReLU gives, and what padding by zeros, slices and pools make of it, cannot be;
    anything else can, whatever it was on the images of the recording: a path's values
    change with every step of the shared weights.

    images  network input; it counts as never negative if `unsigned`
    """

    def __init__(self, images: Tensor, unsigned: bool):
        super().__init__()
        self._kept = [images] if unsigned else []  # alive, so that an id means one tensor
        self._ids = {id(tensor) for tensor in self._kept}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        before = self.at
        out = super().__torch_function__(func, types, args, kwargs)
        unsigned = bool(args) and id(args[0]) in self._ids
        if self.at > before:
            self.seen[before] = self.seen[before][0], 0.0 if unsigned else -1.0
        elif func in _MAKE_UNSIGNED or (func in _KEEP_SIGN and unsigned):
            self._kept.append(out)
            self._ids.add(id(out))
        return out


@dataclass(frozen=True, eq=False)
class PathProducts:
    """One path on the array.

    path     the network that shares the supernet's weights
    session  its products; shapes: `Call.shape` of each, as recorded
    cycles   of the products of one image, one after another
    """

    path: CellNetwork
    session: Session
    shapes: tuple[tuple[int, ...], ...]
    cycles: int

    def run(self, images: Tensor, trial: int) -> Tensor:
        """(n, classes) logits, products on the array, faults of a trial (below 0: none)."""
        with ArrayMode(self.session, self.shapes, trial):
            return self.path(images)


class Products:
    """`PathProducts` by genotype, on one machine.

    images  (n >= 2, c, h, w) network inputs: their sign and shape count, and that of the
            whole data set must be theirs
    model   the fault model of every session
    """

    def __init__(self, supernet: Supernet, accel: Accel, images: Tensor, model=None, seed: int = 0):
        self.supernet, self.accel, self.model, self.seed = supernet, accel, model, seed
        self.images, self.unsigned = images[:2], bool((images >= 0).all())
        self._sites: dict[tuple, ArraySite] = {}
        self._paths: OrderedDict[Genotype, PathProducts] = OrderedDict()

    def of(self, genotype: Genotype) -> PathProducts:
        """Of one genotype; made, or as it was made before."""
        if genotype not in self._paths:
            self._paths[genotype] = self._make(genotype)
            if len(self._paths) > KEPT:
                self._paths.popitem(last=False)
        self._paths.move_to_end(genotype)
        return self._paths[genotype]

    def _make(self, genotype: Genotype) -> PathProducts:
        path = self.supernet.path(genotype)
        recorder = SignRecorder(self.images, self.unsigned)
        # What dropout draws here must not move the draws of training.
        with kept_random_state(self.images.device), torch.no_grad(), recorder:
            path(self.images)
        owner = {id(p): name.rpartition(".")[0] for name, p in path.named_parameters()}
        calls: Counter[str] = Counter()
        sites = []
        for number, (call, least) in enumerate(recorder.seen):
            module = owner[id(call.weight)]
            name = f"{module}#{calls[module]}" if calls[module] else module
            calls[module] += 1
            site = self._site(call, least < 0 or not self.accel.unsigned_acts)
            sites.append(replace(site, number=number, name=name))
        session = Session(self.accel, tuple(sites), self.seed)
        session.model = self.model
        shapes = tuple(call.shape for call, _ in recorder.seen)
        cycles = sum(site.placement.cycles(site.op.index) for site in sites)
        return PathProducts(path, session, shapes, cycles)

    def _site(self, call, signed: bool) -> ArraySite:
        key = (call.kind, call.shape, signed)
        if key not in self._sites:
            common = (0, call.kind, self.accel, call.x.shape[1:])
            if call.kind == "conv":
                site = conv_site(*common, call.weight.shape, signed, call.stride, call.padding,
                                 call.dilation, call.groups)  # fmt: skip
            else:
                site = linear_site(*common, call.weight.shape[0], signed)
            self._sites[key] = site
        return self._sites[key]
