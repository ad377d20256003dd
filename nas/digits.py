"""The handwritten digits that come with the package, and their fixed split.

The images are the test part of the "Optical Recognition of Handwritten Digits"
data set (E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998,
doi:10.24432/C50P49,
CC BY 4.0), the same 1,797 that scikit-learn ships: 8 x 8 pixels of 0..16.
They are stored beside the weights, so that the default example needs neither
the network nor scikit-learn. Written by `python -m fsim.nas.digits OUT.npz`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

FILE = Path(__file__).resolve().parent / "weights" / "digits.npz"
PIXEL_MAX = 16
TEST_SHARE = 0.3
SPLIT_SEED = 20


def test_mask(labels: np.ndarray) -> np.ndarray:
    """Which images are test images: (n,) bool, 30% of every class.

    labels  (n,) integers

    The images are shuffled once and the last 30% of each class are taken.
    RandomState, because numpy guarantees its stream for ever; that of
    default_rng may change with the version.
    """
    order = np.random.RandomState(SPLIT_SEED).permutation(len(labels))
    mask = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        mask[members[len(members) - round(TEST_SHARE * len(members)) :]] = True
    return mask


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """All images (1797, 1, 8, 8) uint8 of 0..16, labels (1797,) int64."""
    with np.load(FILE, allow_pickle=False) as file:
        return file["images"], file["labels"].astype(np.int64)


def digits_split(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of "train" (1,258) or "test" (539), in the original order."""
    images, labels = load_digits()
    mask = test_mask(labels)
    chosen = mask if split == "test" else ~mask
    return images[chosen], labels[chosen]


def export(path: str | Path) -> None:
    """Write scikit-learn's digits as the file this module reads."""
    import sklearn.datasets

    bunch = sklearn.datasets.load_digits()
    np.savez_compressed(
        path,
        images=bunch.images.astype(np.uint8)[:, None],
        labels=bunch.target.astype(np.uint8),
        source=np.str_(
            "Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, "
            "UCI Machine Learning Repository 1998, doi:10.24432/C50P49, CC BY 4.0; "
            "test part, as shipped by scikit-learn"
        ),
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m fsim.nas.digits OUT.npz")
    export(sys.argv[1])
