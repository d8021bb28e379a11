"""Which file system holds a path."""

import os
from pathlib import Path

import pytest

from shardcache.format.mounts import file_system, is_remote

MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /data rw shared:7 master:2 - nfs4 server:/export rw
31 30 0:41 / /data/local rw - xfs /dev/sdb rw
32 22 0:42 / /with\\040space rw - fuse.sshfs host:/ rw
33 22 0:43 / /twice rw - ext4 /dev/sdc rw
34 22 0:44 / /twice rw - lustre mds:/fs rw
a line of something else
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/cache", "ext4"),
        ("/data", "nfs4"),
        ("/data/caches/train", "nfs4"),
        ("/data/local/cache", "xfs"),
        ("/database", "ext4"),
        ("/with space/cache", "fuse.sshfs"),
        ("/twice/cache", "lustre"),
    ],
)
def test_the_longest_mount_point_above_a_path_counts_and_of_equal_ones_the_last(path: str, kind: str):
    assert file_system(Path(path), MOUNTS) == kind


def test_a_link_into_a_network_is_on_the_network(tmp_path: Path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    mounts = MOUNTS + f"40 22 0:50 / {os.path.realpath(tmp_path / 'there')} rw - cifs //server/share rw\n"
    assert file_system(tmp_path / "link" / "cache", mounts) == "cifs"


def test_networks_and_fuse_are_remote_and_disks_are_not():
    assert all(map(is_remote, ["nfs", "nfs4", "cifs", "lustre", "fuse.sshfs", "fuse", "ceph", "9p"]))
    assert not any(map(is_remote, ["", "ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs"]))


def test_this_machine_says_something_of_its_root():
    assert file_system(Path("/"))
