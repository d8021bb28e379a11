"""Every error that shardcache raises, in one tree.

::

    ShardCacheError                  1  (exit code of the command line)
    |- UsageError                    2  an argument is wrong (also a ValueError)
    |- MissingExtraError             2  an optional dependency is needed (also an ImportError)
    |- SourceError                   3  the dataset that is being built
    |  |- SampleError                   dataset[i] raised, or a transform did; too many bad samples
    |  |- RandomSourceError             dataset[i] gives another sample each time
    |  '- UnsupportedTypeError          a value has no column type (also a TypeError)
    |- BuildError                    4  the build around it
    |  |- CacheExistsError              the path is taken (also a FileExistsError)
    |  |- BuildInProgressError          somebody else is building there
    |  |- BuildMismatchError            an interrupted build was of something else
    |  |- WorkerDiedError               a worker process was killed
    |  '- StorageError                  cannot write, disk full (also an OSError)
    '- CacheError                    5  the cache that is being read
       |- CacheNotFoundError            no cache at this path (also a FileNotFoundError)
       |  '- CacheMissError               no cache of this fingerprint, and none was to be built
       |- StaleCacheError               the dataset gives other samples than the cache holds
       |- FormatVersionError            written by a version that this one cannot read
       |- ManifestError                 manifest.json is not what the specification says
       |- StructureError                the cache does not hold what was asked of it (a column, a type)
       '- DamagedError               6  bytes differ from what was written
          |- MissingShardError          a shard file is not there (also a FileNotFoundError)
          |- DamagedShardError          a shard's size or structure differs from the manifest
          '- DamagedBlockError          a value's bytes differ from what was written there

Every class is built from one string: torch's DataLoader carries an exception from a worker to the training process as
its type and its text, and rebuilds it by calling the type with the text.

A message says where, what must be, and what was. What was may come from a file that somebody made to do harm, so
nothing in a message can steer the terminal that shows it.
"""

__all__ = [
    "BuildError",
    "BuildInProgressError",
    "BuildMismatchError",
    "CacheError",
    "CacheExistsError",
    "CacheMissError",
    "CacheNotFoundError",
    "DamagedBlockError",
    "DamagedError",
    "DamagedShardError",
    "FormatVersionError",
    "ManifestError",
    "MissingExtraError",
    "MissingShardError",
    "RandomSourceError",
    "SampleError",
    "ShardCacheError",
    "ShardCacheWarning",
    "SourceError",
    "StaleCacheError",
    "StorageError",
    "StructureError",
    "UnsupportedTypeError",
    "UsageError",
    "WorkerDiedError",
]


def printable(text: str, keep: str = "") -> str:
    """A text in which what shows nothing (control characters, line breaks, ...) is escaped, but for ``keep``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)


class ShardCacheError(Exception):
    """The root: ``except ShardCacheError`` catches everything that this package raises on purpose."""

    exit_code = 1

    def __init__(self, text: str = "") -> None:
        super().__init__(printable(text, keep="\n\t"))


class UsageError(ShardCacheError, ValueError):
    """An argument is wrong; the message says what would be right."""

    exit_code = 2


class MissingExtraError(ShardCacheError, ImportError):
    """An optional dependency is needed; the message gives the ``pip install`` line."""

    exit_code = 2


class SourceError(ShardCacheError):
    """The dataset that is being built is at fault."""

    exit_code = 3


class SampleError(SourceError):
    """``dataset[i]`` or a transform raised; the message names the index, the cause is chained."""


class RandomSourceError(SourceError):
    """Samples differ when they are read again; the message names the columns, and where random things belong."""


class UnsupportedTypeError(SourceError, TypeError):
    """A value has no column type; the message names the sample, the column and the type."""


class BuildError(ShardCacheError):
    """The build could not be done; what was published before is untouched."""

    exit_code = 4


class CacheExistsError(BuildError, FileExistsError):
    """Something is at this path already, and nobody said that it may be replaced."""


class BuildInProgressError(BuildError):
    """Another process is building this very path."""


class BuildMismatchError(BuildError):
    """What an interrupted build left behind was made from another dataset or with other options."""


class WorkerDiedError(BuildError):
    """A worker process ended without a word (killed, out of memory)."""


class StorageError(BuildError, OSError):
    """The file system refused: no space, no permission, read-only, an I/O error."""


class CacheError(ShardCacheError):
    """The cache that is being read is at fault."""

    exit_code = 5


class CacheNotFoundError(CacheError, FileNotFoundError):
    """There is no cache at this path."""


class CacheMissError(CacheNotFoundError):
    """There is no cache of this fingerprint; the message says what differs from others and how to build it."""


class StaleCacheError(CacheError):
    """The dataset gives other samples than the cache holds; the message names sample, column and both values."""


class FormatVersionError(CacheError):
    """The cache was written in a version of the format, or on a platform, that cannot be read here."""


class ManifestError(CacheError):
    """``manifest.json`` is not what the specification says."""


class StructureError(CacheError, KeyError):
    """The cache does not hold what was asked of it: no such column, no such type."""

    __str__ = Exception.__str__  # KeyError would print the repr of the message


class DamagedError(CacheError):
    """Bytes on disk differ from what was written."""

    exit_code = 6


class MissingShardError(DamagedError, FileNotFoundError):
    """A shard that the manifest names is not there."""


class DamagedShardError(DamagedError):
    """A shard's size or structure differs from the manifest."""


class DamagedBlockError(DamagedError):
    """The bytes of one value differ from what was written there, or belong elsewhere."""


class ShardCacheWarning(UserWarning):
    """Something works, but not as well as it could; the message says what to change."""
