"""Samples with what is hard to compare: records, NaN, arrays, text."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch


@dataclass
class Point:
    x: float
    tags: list[str]


class Pair(NamedTuple):
    a: torch.Tensor
    b: np.ndarray


class Points:
    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Point, Pair]:
        array = np.array([np.nan, index], np.float32)
        return Point(float("nan"), ["t"] * (index % 3)), Pair(torch.full((2,), float("nan")), array)
