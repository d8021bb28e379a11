"""Samples that cannot be read or stored: whether they end a build, how many are borne, and what is kept of why."""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from shardcache.builder.encode import encode_columns
from shardcache.errors import SampleError, SourceError, UsageError
from shardcache.format import provenance, spec
from shardcache.format.columns import Encoded
from shardcache.format.provenance import SkipNote
from shardcache.format.schema import Column
from shardcache.format.split import BlockSplitter

if TYPE_CHECKING:
    from shardcache.builder.shards import Report, ShardRecord

_MIN_ERRORS = 16
_MESSAGE = 500  # characters
_SHOWN = 3
_SKIPPED: Any = object()


class Tolerance(msgspec.Struct, frozen=True):
    """``on_error`` and ``max_errors`` of :func:`~shardcache.build`."""

    on_error: str = "raise"
    max_errors: int | None = None

    def check(self) -> None:
        """:class:`UsageError` where they have no sense."""
        if self.on_error not in ("raise", "skip"):
            raise UsageError(f"on_error must be 'raise' or 'skip', was {self.on_error!r}")
        if self.max_errors is None:
            return
        if type(self.max_errors) is not int or self.max_errors < 0:
            raise UsageError(f"max_errors must be 0 or more, was {self.max_errors!r}")
        if not self.skips:
            raise UsageError("max_errors is for on_error='skip'; without it the first error ends the build")

    @property
    def skips(self) -> bool:
        """Whether a bad sample is left out."""
        return self.on_error == "skip"

    def most(self, samples: int) -> int:
        """How many of ``samples`` may be left out."""
        wanted = max(_MIN_ERRORS, samples // 100) if self.max_errors is None else self.max_errors
        return min(wanted, spec.MAX_SKIPPED)


STRICT = Tolerance()


def note(index: int, error: Exception) -> SkipNote:
    """What is kept of an error: the type and text of what the dataset raised, or of what could not be stored."""
    cause = error.__cause__ or error
    text = str(cause).removeprefix(f"sample {index}, ")[:_MESSAGE].encode("utf-8", "backslashreplace").decode()
    return SkipNote(index, type(cause).__name__, text)


def merged(notes: Iterable[SkipNote]) -> tuple[SkipNote, ...]:
    """The first of them by index, as many as are kept."""
    return tuple(sorted(notes, key=lambda one: one.index)[: provenance.MAX_NOTES])


class Tally:
    """Counts what is skipped, from the shards on that are done already; too many end the build."""

    def __init__(self, tolerance: Tolerance, samples: int, done: "Iterable[ShardRecord]") -> None:
        self._tolerance, self._samples = tolerance, samples
        self._shards: dict[int, tuple[int, int]] = {}  # of each, samples and skipped ones
        self._first: list[SkipNote] = []
        for record in done:
            self._shards[record.number] = record.rows, len(record.skipped)
            self._first += record.notes[:_SHOWN]

    def add(self, report: "Report") -> None:
        """Count some more; a shard that is begun anew is counted anew."""
        seen, skipped = self._shards.get(report.shard, (0, 0))
        skipped = len(report.skipped) + (skipped if report.samples >= seen else 0)
        self._shards[report.shard] = report.samples, skipped
        if not report.skipped:
            return
        self._first += report.skipped[:_SHOWN]
        seen, skipped = map(sum, zip(*self._shards.values(), strict=True))
        most = self._tolerance.most(self._samples or seen)
        if skipped > most:
            raise SampleError(
                f"{skipped} samples could not be read or stored; max_errors allows {most}"
                f"{' by default' if self._tolerance.max_errors is None else ''}: {said(self._first)}"
            )


def said(notes: Sequence[SkipNote]) -> str:
    """Some errors in words."""
    return "; ".join(f"sample {one.index}: {one.error}: {one.message}" for one in notes[:_SHOWN])


def unencodable(
    schema: Sequence[Column], split: BlockSplitter, samples: Sequence[Any], indices: Sequence[int]
) -> dict[int, SourceError]:
    """The samples that cannot be stored, by their places, and why."""
    found = {}
    for place, (sample, index) in enumerate(zip(samples, indices, strict=True)):
        try:
            if sample is not _SKIPPED:
                encode_columns(schema, split([sample]), [index])
        except SourceError as error:
            found[place] = error
    return found


class Block:
    """The samples of a block on their way from the source to encoded columns; some of them skipped.

    ``errors`` has, by place, what was wrong with samples that nobody knew to be bad.
    """

    def __init__(self, indices: Sequence[int], skips: bool) -> None:
        self.indices, self._skips = indices, skips
        self._samples: list[Any] = []
        self.errors: dict[int, SourceError] = {}

    def read(self, read: Callable[[int], Any], known: Collection[int] = ()) -> None:
        """Read all samples but those at the places ``known`` to be skipped."""
        for place, index in enumerate(self.indices):
            sample = _SKIPPED
            try:
                if place not in known:
                    sample = read(index)
            except SourceError as error:
                if not self._skips or isinstance(error.__cause__, MemoryError):
                    raise
                self.errors[place] = error
            self._samples.append(sample)

    def encoded(self, schema: Sequence[Column], split: BlockSplitter) -> list[Encoded | None]:
        """The columns, a copy of a neighbour in each place that is skipped (``spec``, section 2)."""
        while filled := _filled(self._samples):
            try:
                return encode_columns(schema, split(filled), self.indices)
            except SourceError:
                bad = unencodable(schema, split, self._samples, self.indices) if self._skips else {}
                if not bad:
                    raise
                self.errors |= bad
                for place in bad:
                    self._samples[place] = _SKIPPED
        return [None] * len(schema)


def _filled(samples: Sequence[Any]) -> list[Any]:
    """Each sample, or the nearest kept one before it, else the nearest behind it; none where there is none."""
    last = next((sample for sample in samples if sample is not _SKIPPED), _SKIPPED)
    if last is _SKIPPED:
        return []
    filled = []
    for sample in samples:
        last = last if sample is _SKIPPED else sample
        filled.append(last)
    return filled
