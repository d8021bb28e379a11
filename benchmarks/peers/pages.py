"""Pages of files in the page cache: dropping them, and looking whether they are gone."""

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path


def drop(folder: Path) -> float:
    """Drop all pages of the files in a folder; the share that is still there, as when somebody has them mapped."""
    pages = resident = 0
    for path in _files(folder):
        with path.open("rb") as file:
            os.fdatasync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            found = _resident(file.fileno())
        pages += len(found)
        resident += sum(found)
    return resident / max(pages, 1)


def read(folder: Path) -> int:
    """Read all files plainly, one after the other, and tell how many bytes that were."""
    buffer, count = bytearray(1 << 20), 0
    for path in _files(folder):
        with path.open("rb", buffering=0) as file:
            while size := file.readinto(buffer):
                count += size
    return count


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size)


def _resident(descriptor: int) -> list[int]:
    """For each page of a file 1 where it is in memory, by mincore(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    size = os.fstat(descriptor).st_size
    address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    found = (ctypes.c_ubyte * (-(-size // mmap.PAGESIZE)))()
    try:
        if libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), found):
            raise OSError(ctypes.get_errno(), "mincore")
    finally:
        libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
    return [state & 1 for state in found]
