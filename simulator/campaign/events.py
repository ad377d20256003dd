"""Events of a fault model that is a distribution: no numbered sites, any number of rows."""

from __future__ import annotations

import numpy as np

from fsim.simulator.draws import Draws
from fsim.simulator.model_rows import model_rows
from fsim.simulator.sampling import draw_sites
from fsim.simulator.sites import SiteSpace
from fsim.types import FAULT

from .population import _ORDER, Drawn

_IMAGE = _ORDER - 5  # random stream: the image of each trial


class Events:
    """One draw of a fault model in one inference a trial, its image uniform.

    model  a fault model whose rows are of images (unit "image")
    """

    def __init__(self, space: SiteSpace, model, images: int, *, seed=0):
        self.space, self.model, self.images, self.seed = space, model, images, seed
        self.draws = Draws(seed)

    def draw(self, trials: np.ndarray) -> Drawn:
        """The rows of trials: of each all its rows, which may be none."""
        trial = np.sort(np.asarray(trials, np.int64))
        image = np.empty((len(trial), 1), np.int64)
        parts = []
        for number, one in enumerate(trial.tolist()):
            image[number] = draw_sites(self.images, 1, seed=self.seed, stream=_IMAGE, trial=one)
            parts.append(model_rows(self.model, self.space, one, image[number], self.draws))
        rows = np.concatenate([np.zeros(0, FAULT), *parts])
        begin = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        return Drawn(trial, rows, begin, image)
