"""Texts of a block, seen as one."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def are_texts(data: "np.ndarray[Any, np.dtype[np.uint8]]", bounds: Sequence[int]) -> bool:
    """Whether each part is valid UTF-8: all of it is, and no bound cuts a letter."""
    try:
        whole = str(data.data, "utf-8")
    except UnicodeDecodeError:
        return False
    if whole.isascii():
        return True
    starts = np.array(bounds)
    return not (data[starts[starts < len(data)]] & 0xC0 == 0x80).any()
