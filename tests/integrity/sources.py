"""A dataset that worker processes and other programs can make too."""

import time
from typing import Any

import numpy as np


class Numbered:
    """160 samples of noise, which is stored as it is, and a label; ``offset`` makes it another dataset."""

    def __init__(self, offset: int = 0, size: int = 160, sleep: float = 0) -> None:
        self.offset, self.size, self.sleep = offset, size, sleep

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        time.sleep(self.sleep)
        return {"noise": np.random.default_rng(index + self.offset).bytes(1500), "label": index + self.offset}
