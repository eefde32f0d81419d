"""scikit-learn's bundled 8x8 scans of handwritten digits: labels, pixels, and the two splits.

Source: UCI, Optical Recognition of Handwritten Digits (E. Alpaydin and C. Kaynak), as `sklearn.datasets.load_digits`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hetsched.errors import DataError

Split = Literal["train", "held_out"]

SIDE = 8
"""Pixels on a side of a scan."""
_HELD_OUT_EVERY = 6


@cache
def _digits() -> tuple[NDArray[np.float32], tuple[int, ...]]:
    """Pixels ``[1797, 8, 8]`` in -1..1, and labels."""
    # The file itself: importing sklearn.datasets for load_digits takes seconds, in every process.
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataError("the digits are part of scikit-learn, which is not installed; pip install scikit-learn")
    table = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    return (table[:, :-1].reshape(-1, SIDE, SIDE) / 8 - 1).astype(np.float32), tuple(int(v) for v in table[:, -1])


def label(scan: int) -> int:
    """The digit that a scan shows."""
    return _digits()[1][scan]


@cache
def scans_of(split: Split) -> tuple[int, ...]:
    """The scans of a split, ascending: every sixth is held out, so no scan is in both."""
    is_held_out = split == "held_out"
    return tuple(i for i in range(len(_digits()[1])) if (i % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1) == is_held_out)


def pixels(scan: int) -> NDArray[np.float32]:
    """A scan as it is, ``[8, 8]`` in -1..1."""
    scan_pixels: NDArray[np.float32] = _digits()[0][scan]
    return scan_pixels


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How far a variant of a scan may be from it.

    Args:
        shift: largest shift along either axis, in pixels.
        turn: largest rotation, in radians.
        zoom: largest relative change of size along either axis.
        contrast: largest relative change of the distance from the background.
        noise: standard deviation of the noise added to each pixel.
    """

    shift: float = 0.8
    turn: float = 0.2
    zoom: float = 0.12
    contrast: float = 0.15
    noise: float = 0.1

    def variants(self, scan: int, *, num_variants: int, seed: int) -> NDArray[np.float32]:
        """A scan as it is, then its variants, ``[1 + num_variants, 8, 8]``; the same for the same seed."""
        rng = np.random.default_rng((seed, scan))

        def draw(largest: float, *shape: int) -> NDArray[np.float64]:
            return rng.uniform(-largest, largest, (num_variants, *shape))

        turn = draw(self.turn)
        rotation = np.stack([np.cos(turn), -np.sin(turn), np.sin(turn), np.cos(turn)], axis=-1).reshape(-1, 2, 2)
        matrix = rotation * (1 + draw(self.zoom, 1, 2))
        where = _CENTERED @ matrix + draw(self.shift, 1, 2) + (SIDE - 1) / 2
        moved = _sample(pixels(scan) + 1, where) * (1 + draw(self.contrast, 1)) - 1
        noisy = moved + rng.normal(scale=self.noise, size=moved.shape)
        return np.concatenate((pixels(scan)[None], noisy.reshape(-1, SIDE, SIDE))).astype(np.float32)


_CENTERED = np.indices((SIDE, SIDE)).reshape(2, -1).T - (SIDE - 1) / 2
"""Row and column of each pixel, ``[64, 2]``, from the middle of a scan."""


def _sample(image: NDArray[np.float32], where: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bilinear samples of ``image`` at ``where``, ``[..., 2]`` in pixels; 0 outside of it."""
    framed = np.pad(image, 2)
    at = np.clip(where + 2, 0, SIDE + 3 - 1e-6)
    low = at.astype(np.int64)
    y, x = low[..., 0], low[..., 1]
    fy, fx = np.moveaxis(at - low, -1, 0)
    above = framed[y, x] * (1 - fx) + framed[y, x + 1] * fx
    below = framed[y + 1, x] * (1 - fx) + framed[y + 1, x + 1] * fx
    result: NDArray[np.float64] = above * (1 - fy) + below * fy
    return result
