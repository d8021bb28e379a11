"""The folder in which caches lie that experiments share, and what is kept beside each of them.

For a cache of name N and fingerprint K: ``N/K/`` (it), ``N/K.json`` (the parts of its fingerprint: private, since
they have arguments and paths; ``N/K.json.begun`` while it is built), ``N/K.lock`` (held by who builds it),
``N/K.used`` (its time of modification is the last use), ``N/K.pin`` (where it must not be pruned). Only the first is
worth copying elsewhere. ``N`` has the permissions of the folder around it.
"""

import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import platformdirs

from shardcache.builder.swap import discard, sweep
from shardcache.errors import CacheNotFoundError, StorageError, UsageError
from shardcache.format import manifest as manifests
from shardcache.format import spec
from shardcache.format.files import directory_of, read_regular, storage_errors, write_whole
from shardcache.format.manifest import Manifest
from shardcache.read.hold import REPLACED, is_held, replaced
from shardcache.registry.data import Files
from shardcache.registry.fingerprint import Fingerprint
from shardcache.registry.lock import BuildLock

HOME = "SHARDCACHE_HOME"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_MAX_ENTRY_BYTES = 256 << 20  # it lists the files of a dataset
_KEY = re.compile(r"[0-9a-f]{32}")


class Entry(msgspec.Struct, frozen=True):
    """What is known of a cache beyond itself. ``discovered`` are files that its dataset turned out to use."""

    name: str
    target: str
    fingerprint: Fingerprint
    discovered: dict[str, Files] = {}


def root_of(cache_dir: str | os.PathLike[str] | None = None, *, allow_shared: bool = False) -> Path:
    """The folder of all caches: the argument, else SHARDCACHE_HOME, else the platform's folder for caches.

    It is made where it is not there, for its owner alone.

    Raises:
        UsageError: others may write there, so that what is in it could be anybody's; ``allow_shared`` permits that.
        StorageError: it cannot be made.
    """
    given = cache_dir or os.environ.get(HOME)
    if given:
        directory_of(given)  # refuses what is no path
        given = os.path.expanduser(given)  # a variable that no shell has set may hold it
    root = Path(given) if given else platformdirs.user_cache_path("shardcache", appauthor=False)
    if "~" in root.parts[:1]:
        raise UsageError(f"this user has no home for a folder of caches: say cache_dir=, or set {HOME}")
    root = root.absolute()
    try:
        with storage_errors(root):
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            mode, owner = root.stat().st_mode, root.stat().st_uid
    except StorageError as error:
        raise StorageError(f"{error}; cache_dir= or {HOME} names another folder of caches") from error.__cause__
    if not allow_shared and (mode & (stat.S_IWGRP | stat.S_IWOTH) or owner not in (os.getuid(), 0)):
        raise UsageError(
            f"{root}: others may write there ({stat.filemode(mode)}): a cache in it could be anybody's. Take their "
            "permission away, choose another folder (cache_dir=, SHARDCACHE_HOME), or say allow_shared=True"
        )
    return root


@dataclass(frozen=True)
class Slot:
    """The place of one cache: ``folder / key`` and what lies beside it."""

    folder: Path
    key: str

    @property
    def path(self) -> Path:
        """The cache's directory."""
        return self.folder / self.key

    @property
    def name(self) -> str:
        """The name under which experiments ask for it."""
        return self.folder.name

    @property
    def is_published(self) -> bool:
        """Whether there is a cache."""
        with storage_errors(self.path, "looked at"):
            return (self.path / spec.MANIFEST_NAME).is_file()

    def beside(self, what: str) -> Path:
        """A file beside the cache."""
        return self.folder / f"{self.key}.{what}"

    def make_folder(self) -> None:
        """Make the folder for this name, with the permissions of the folder of all caches."""
        with storage_errors(self.folder):
            if not self.folder.is_dir():
                self.folder.mkdir(mode=0o700, exist_ok=True)
                self.folder.chmod(stat.S_IMODE(self.folder.parent.stat().st_mode))

    def lock(self) -> BuildLock:
        """What a builder holds."""
        return BuildLock(self.beside("lock"))

    def entry(self) -> Entry | None:
        """What was written down of it, None where that is not there or cannot be read."""
        try:
            return msgspec.json.decode(read_regular(self.beside("json"), _MAX_ENTRY_BYTES), type=Entry)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    def begin_entry(self, entry: Entry) -> None:
        """Write down what it will be made of; until :meth:`finish_entry` nobody takes it for that."""
        with storage_errors(self.folder):
            self.forget_entry()
            write_whole(self.beside("json.begun"), msgspec.json.encode(entry))

    def finish_entry(self) -> None:
        """What was begun is what is published: a rename, which a full disk permits."""
        with storage_errors(self.folder):
            self.beside("json.begun").rename(self.beside("json"))

    def forget_entry(self) -> None:
        """Have it built anew by who asks for it next."""
        with storage_errors(self.folder):
            self.beside("json").unlink(missing_ok=True)

    def manifest(self) -> Manifest:
        """The cache's manifest."""
        return manifests.read(self.path)

    def mark_used(self) -> None:
        """Remember now as its last use; a folder that cannot be written is left as it is."""
        with suppress(OSError):
            self.beside("used").touch()

    @property
    def made(self) -> float | None:
        """When it was published, in seconds since the epoch."""
        with suppress(OSError):
            return (self.path / spec.MANIFEST_NAME).stat().st_mtime
        return None

    @property
    def last_used(self) -> float:
        """Seconds since the epoch."""
        partial = self.path.with_name(f"{self.key}.partial")
        for file in (self.beside("used"), self.path / spec.MANIFEST_NAME, partial):
            with suppress(OSError):
                return file.stat().st_mtime
        return 0.0

    @property
    def is_pinned(self) -> bool:
        """Whether it must not be pruned."""
        with storage_errors(self.path, "looked at"):
            return self.beside("pin").exists()

    @property
    def is_in_use(self) -> bool:
        """Whether somebody reads or builds it."""
        return is_held(self.path) or self.lock().is_taken()

    def remove(self) -> bool:
        """Delete it; False where it is in use. What is deleted was renamed away first: nobody opens a half of it."""
        lock = self.lock()
        try:
            with storage_errors(self.path):
                if not self.folder.is_dir() or not lock.acquire():
                    return not self.folder.is_dir()
                if is_held(self.path):
                    return False
                self._remove()
        finally:
            lock.release()
        return True

    def _remove(self) -> None:
        for what in ("json", "json.begun", "used", "pin"):
            self.beside(what).unlink(missing_ok=True)
        if self.path.exists():
            self.path.rename(self.path.with_name(f"{self.key}{REPLACED}{secrets.token_hex(4)}"))
        discard(self.path.with_name(f"{self.key}.partial"))
        sweep(self.path)


def slot_of(root: Path, name: str, key: str) -> Slot:
    """The place for a name and a fingerprint."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"name must be letters, digits, '.', '_' and '-', at most 100 of them, was {name!r}")
    return Slot(root / name, key)


def slots(root: Path, name: str | None = None) -> list[Slot]:
    """All that is there, of one name or of every one; the last used first."""
    found = [slot for folder in _folders(root, name) for slot in _slots_in(folder)]
    return sorted(found, key=lambda slot: slot.last_used, reverse=True)


def _folders(root: Path, name: str | None) -> Iterator[Path]:
    if name is not None:
        yield slot_of(root, name, "").folder
        return
    with suppress(OSError):
        yield from (folder for folder in root.iterdir() if folder.is_dir() and _NAME.fullmatch(folder.name))


def _slots_in(folder: Path) -> Iterator[Slot]:
    with suppress(OSError):
        keys = {entry.name.partition(".")[0] for entry in folder.iterdir()}
        for key in sorted(filter(_KEY.fullmatch, keys)):
            slot = Slot(folder, key)
            if slot.path.is_dir() or slot.path.with_name(f"{key}.partial").is_dir() or replaced(slot.path):
                yield slot


def named(root: Path, text: str) -> list[Slot]:
    """What a person means by NAME, NAME/KEY (or the beginning of KEY), or the path of a cache; the last used first."""
    path = Path(text).absolute()
    if path.is_dir() and _KEY.fullmatch(path.name):
        return [Slot(path.parent, path.name)]
    if path.is_dir() and (path / spec.MANIFEST_NAME).is_file():
        raise UsageError(f"{text}: this cache lies in no folder of caches; it is yours alone to keep or delete")
    name, _, key = text.partition("/")
    return [slot for slot in slots(root, name) if slot.key.startswith(key)]


def find(root: Path, text: str) -> Slot:
    """The one cache that a person means: of several of a name the last used one."""
    found = named(root, text)
    if not found:
        raise CacheNotFoundError(f"{text}: no cache of this name in {root}; 'shardcache ls' shows what there is")
    if "/" in text and len(found) > 1:
        raise UsageError(f"{text}: {len(found)} caches begin so: {', '.join(slot.key for slot in found)}")
    return found[0]
