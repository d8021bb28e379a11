"""Memory for batches that is used again instead of being given back to the system.

What glibc's allocator gets back at the end of its heap it returns to the system when that is more than a threshold, and
a large piece at once. Then every batch begins with as many page faults as it has pages, each of which clears its page:
measured for lists of JPEG files, that takes 3 to 10 times as long as to copy them. The threshold rises to twice the
largest piece that was ever freed (up to 32 MiB); so one is, which nobody has written to and which costs nothing. A
process that works with large tensors has done so anyway. Other allocators ignore it.
"""

import numpy as np

MOST_BYTES = 31 << 20

_kept = 0


def keep_room(nbytes: float) -> None:
    """Keep as much memory as some batches of ``nbytes`` take, once they have been freed, for the next ones."""
    global _kept
    wanted = int(min(2 * nbytes, MOST_BYTES))
    if wanted > _kept:
        _kept = wanted
        np.empty(wanted, np.uint8)  # and freed
