"""On which file system a path lies, from what Linux says of its mounts."""

import os
import re
from pathlib import Path

# A memory map on one of these turns every failure of the network, the server or a cache between into a SIGBUS.
_NETWORK = frozenset(
    "9p afs beegfs ceph cifs coda fuse fuseblk gfs2 glusterfs gpfs lustre ncpfs nfs nfs4 ocfs2 orangefs panfs pvfs2 "
    "smb2 smb3 smbfs vboxsf virtiofs wekafs".split()
)
_MOUNTS = Path("/proc/self/mountinfo")


def file_system(path: Path, mountinfo: str | None = None) -> str:
    """The type of the file system that holds ``path``, as ``"ext4"``; empty where nobody says."""
    if mountinfo is None:
        try:
            mountinfo = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return ""
    where = os.path.realpath(path)
    found, longest = "", -1
    for line in mountinfo.splitlines():
        head, dash, tail = line.partition(" - ")
        fields = head.split(" ")
        if not dash or len(fields) < 5:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        # The last one of several at one place hides the others.
        if len(point) >= longest and (where == point or where.startswith(point.rstrip("/") + "/")):
            found, longest = tail.split(" ")[0], len(point)
    return found


def is_remote(kind: str) -> bool:
    """Whether a file system of this type is on a network, or in a process of somebody's."""
    return kind in _NETWORK or kind.startswith("fuse.")
