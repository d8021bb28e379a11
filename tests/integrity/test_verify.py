"""verify: real damage to real caches, and caches that were sealed wrong."""

import json
import os
import random
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

import shardcache
from shardcache.errors import CacheNotFoundError, DamagedError, FormatVersionError, UsageError
from shardcache.format import block, manifest, pages, shard, spec
from shardcache.format.block import Place
from shardcache.integrity import scan
from shardcache.integrity.report import Problem, Report
from shardcache.integrity.verify import verify

SAMPLES = 240
COLUMNS = {"/": 0, "image": 1, "name": 2, "label": 3}  # position of each column of Pictures


class Pictures:
    """240 small samples: fixed, ragged and optional columns."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, object]:
        image = np.random.default_rng(index).integers(0, 256, (16, 16), np.uint8)
        return {"image": image, "name": f"picture {index}" * (index % 7), "label": index if index % 3 else None}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several shards, which so little data would not have."""
    path = tmp_path_factory.mktemp("integrity") / "pictures"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spec, "MIN_SHARD_BYTES", 16 << 10)
        cache = shardcache.build(Pictures(), path, block_bytes=4 << 10, progress=False)
    assert len(cache.manifest.shards) > 3
    assert min(map(cache.manifest.shard_blocks, range(4))) > 2
    return path


@pytest.fixture
def cache(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "cache"))


def shard_path(cache: Path, at: int) -> Path:
    return cache / spec.shard_name(at)


def flip(path: Path, offset: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


def places_of(path: Path) -> dict[bytes, tuple[int, int]]:
    """Where each value of a shard lies: its offset and size."""
    with path.open("rb") as file:
        size = path.stat().st_size
        return {key: (offset, length) for key, offset, length in pages.values(file.fileno(), size, "a shard")}


def values_of(path: Path) -> dict[bytes, bytes]:
    data = path.read_bytes()
    return {key: data[offset : offset + size] for key, (offset, size) in places_of(path).items()}


def reseal(cache: Path, **changes: object) -> None:
    """Write a manifest that says something else, with a digest that fits."""
    changed = msgspec.structs.replace(manifest.read(cache), **changes)
    (cache / spec.MANIFEST_NAME).write_bytes(manifest.encode(changed))


def rewrite(cache: Path, at: int, change: Callable[[dict[bytes, bytes]], object]) -> None:
    """Make another shard, sound for LMDB and with a seal that fits, of what ``change`` leaves of its values."""
    path = shard_path(cache, at)
    values = values_of(path)
    change(values)
    path.unlink()
    with shard.ShardWriter(path) as writer:
        for key, value in sorted(values.items()):
            writer.put(key, value)
        seal = writer.finish()
    seals = list(manifest.read(cache).shards)
    seals[at] = seal
    reseal(cache, shards=tuple(seals))


def put_body(cache: Path, at: int, values: dict[bytes, bytes], key: bytes, body: bytes) -> None:
    """Another body under a key, with the checksum that it should have."""
    place = Place(bytes.fromhex(manifest.read(cache).cache_id), at, key)
    values[key] = bytes(block.seal(body, None, place))


def unreadable(path: Path) -> list[int]:
    """The samples that a reader cannot have; those that it gets must be right."""
    lost, source = [], Pictures()
    cache = shardcache.open(path)
    for index in range(SAMPLES):
        try:
            sample = cache[index]
        except DamagedError:
            lost.append(index)
            continue
        expected = source[index]
        assert np.array_equal(sample.pop("image"), expected.pop("image"))
        assert sample == expected
    return lost


def check(path: Path, **options: object) -> Report:
    """A report that a script could read."""
    report = verify(path, **options)
    assert json.loads(json.dumps(report.as_dict()))["ok"] == bool(report)
    return report


def the_problem(path: Path) -> object:
    report = check(path)
    assert len(report.problems) == 1, report.problems
    assert not report
    return report.problems[0]


def test_a_sound_cache_has_no_problem_and_every_value_was_read(cache: Path):
    report = check(cache)
    assert (report.problems, report.notes) == ((), ())
    assert report.values == sum(len(places_of(path)) - 1 for path in cache.glob("shard-*"))  # the index is none
    assert len(report.source_indices()) == 0


def test_it_is_a_public_name():
    assert shardcache.verify is verify


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_progress_counts_every_row_once_with_any_number_of_threads(cache: Path, threads: int):
    shard_path(cache, 2).unlink()
    seen: list[tuple[int, int]] = []
    verify(cache, num_workers=threads, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (SAMPLES, SAMPLES)


@pytest.mark.parametrize("threads", [-1, 1.5, True])
def test_a_number_of_threads_that_is_none_is_refused(cache: Path, threads: object):
    with pytest.raises(UsageError, match="num_workers must be 0 or more, was"):
        verify(cache, num_workers=threads)


def test_a_flipped_bit_in_a_value_costs_that_column_of_that_block_only(cache: Path):
    offset, size = places_of(shard_path(cache, 1))[block.value_key(2, COLUMNS["image"])]
    flip(shard_path(cache, 1), offset + size // 2)
    problem = the_problem(cache)
    m = manifest.read(cache)
    start = (m.blocks_per_shard + 2) * m.rows_per_block
    assert (problem.file, problem.block, problem.column) == ("shard-00001.lmdb", 2, "image")
    assert problem.rows == range(start, start + m.rows_per_block)
    assert problem.kind == "DamagedBlockError"
    assert "shard 00001, block 2, column 'image': stored checksum 0x" in problem.what
    assert "run 'shardcache" not in problem.what
    assert f"{m.rows_per_block} values of column 'image' lost: rows {start} to" in problem.consequence
    assert set(problem.source_indices) == set(unreadable(cache)) == set(check(cache).source_indices().tolist())


def test_every_damaged_value_of_every_shard_is_reported(cache: Path):
    damaged = [(0, 0), (0, 2), (1, 1), (3, 0), (3, 1)]
    for at, local in damaged:
        offset, size = places_of(shard_path(cache, at))[block.value_key(local, COLUMNS["image"])]
        flip(shard_path(cache, at), offset + size - 1, bit=7)
    report = check(cache)
    assert [(int(problem.file[6:11]), problem.block) for problem in report.problems] == damaged
    assert {problem.column for problem in report.problems} == {"image"}
    assert report.source_indices().tolist() == unreadable(cache)


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 4096)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(4096))


def empty(path: Path) -> None:
    os.truncate(path, 0)


def damage_the_tree(path: Path) -> None:
    flip(path, 4096 + 30)


def make_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def damage_a_small_value(path: Path) -> None:
    """It lies among the nodes of LMDB's tree."""
    offset, size = places_of(path)[block.value_key(1, COLUMNS["label"])]
    flip(path, offset + size - 1)


@pytest.mark.parametrize(
    ("fault", "kind", "text"),
    [
        (remove, "MissingShardError", "which does not exist"),
        (truncate, "DamagedShardError", "must have .* bytes, has"),
        (lengthen, "DamagedShardError", "must have .* bytes, has"),
        (empty, "DamagedShardError", "bytes, has 0"),
        (damage_the_tree, "DamagedShardError", "shard 00002"),
        (make_a_folder, "DamagedShardError", "must be a regular file, is a directory"),
        (make_a_link, "DamagedShardError", "must be a regular file, is a symbolic link"),
        (damage_a_small_value, "DamagedShardError", "the digest of its structure must be"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_a_shard_that_cannot_be_opened_costs_its_rows_and_the_others_are_checked(
    cache: Path, fault: Callable[[Path], None], kind: str, text: str
):
    fault(shard_path(cache, 2))
    offset, _ = places_of(shard_path(cache, 3))[block.value_key(0, COLUMNS["image"])]
    flip(shard_path(cache, 3), offset)
    report = check(cache)
    first, second = report.problems
    m = manifest.read(cache)
    rows = m.blocks_per_shard * m.rows_per_block
    assert (first.file, first.kind, first.block, first.column) == ("shard-00002.lmdb", kind, None, None)
    assert first.rows == range(2 * rows, 3 * rows)
    assert "samples lost: rows" in first.consequence
    assert re.search(text, first.what)
    assert (second.file, second.column) == ("shard-00003.lmdb", "image")
    assert report.source_indices().tolist() == unreadable(cache)


def test_two_shards_in_each_others_place_are_both_refused(cache: Path):
    one, two, aside = shard_path(cache, 0), shard_path(cache, 1), cache / "aside"
    one.rename(aside)
    two.rename(one)
    aside.rename(two)
    assert [problem.file for problem in check(cache).problems] == [one.name, two.name]


def test_a_byte_that_no_sample_uses_is_found_by_the_digest_of_the_file(cache: Path):
    path = shard_path(cache, 0)
    ends = {offset + size for offset, size in places_of(path).values() if offset % 4096 == 16}  # in pages of their own
    flip(path, next(end for end in ends if end % 4096))
    problem = the_problem(cache)
    assert "the SHA-256 of the file must be" in problem.what
    assert (problem.rows, problem.consequence) == (range(0), "no sample is affected")
    assert unreadable(cache) == []


def test_a_valid_value_in_the_wrong_place_is_refused(cache: Path):
    """The seals fit: only the checksum's seed tells."""
    here, there = block.value_key(0, COLUMNS["image"]), block.value_key(1, COLUMNS["image"])

    def swap(values: dict[bytes, bytes]) -> None:
        values[here], values[there] = values[there], values[here]

    rewrite(cache, 1, swap)
    assert [(problem.block, problem.column) for problem in check(cache).problems] == [(0, "image"), (1, "image")]


def test_a_value_that_is_missing_is_reported_with_its_block(cache: Path):
    rewrite(cache, 1, lambda values: values.pop(block.value_key(2, COLUMNS["name"])))
    problem = the_problem(cache)
    assert (problem.block, problem.column) == (2, "name")
    assert "must have a value of key" in problem.what


@pytest.mark.parametrize(
    "key",
    [
        block.value_key(0, COLUMNS["/"]),
        block.value_key(1, COLUMNS["name"], 3),
        block.value_key(500, COLUMNS["name"]),
        block.value_key(0, 77),
        b"\xff" * 7 + b"\xfe",
    ],
)
def test_values_that_nothing_asks_for_are_reported(cache: Path, key: bytes):
    rewrite(cache, 1, lambda values: values.update({key: b"anything"}))
    problem = the_problem(cache)
    assert f"1 values that no block refers to, the first with key {key.hex()}" in problem.what
    assert problem.consequence == "no sample is affected"


def test_a_damaged_index_costs_the_shard(cache: Path):
    def damage(values: dict[bytes, bytes]) -> None:
        values[spec.INDEX_KEY] = values[spec.INDEX_KEY][:-1] + b"?"

    rewrite(cache, 1, damage)
    problem = the_problem(cache)
    assert problem.what.startswith("shard 00001, its index: stored checksum")
    assert set(problem.source_indices) == set(unreadable(cache))


def test_an_index_of_the_wrong_length_is_refused(cache: Path):
    rewrite(cache, 1, lambda values: put_body(cache, 1, values, spec.INDEX_KEY, b"\1\1\1"))
    assert "3 entries where the shard has" in the_problem(cache).what


@pytest.mark.parametrize("form", [0x07, 0x21, 0x80])
def test_a_form_that_the_format_does_not_have_costs_the_shard(cache: Path, form: int):
    m = manifest.read(cache)
    forms = np.full((m.shard_blocks(1), len(m.columns)), 0xFF, np.uint8)
    forms[:, 1:] = [1, 2, 0x11]
    forms[1, COLUMNS["image"]] = form
    rewrite(cache, 1, lambda values: put_body(cache, 1, values, spec.INDEX_KEY, forms.tobytes()))
    problem = the_problem(cache)
    assert "shard 00001, its index: a form that the format does not have" in problem.what
    assert set(problem.source_indices) == set(unreadable(cache))


def test_a_body_that_does_not_hold_its_rows_is_refused(cache: Path):
    key = block.value_key(2, COLUMNS["image"])
    rewrite(cache, 0, lambda values: put_body(cache, 0, values, key, bytes(100)))
    problem = the_problem(cache)
    assert "shard 00000, block 2, column 'image': a body that is not the size of its rows" in problem.what


def test_a_row_that_cannot_be_decoded_is_reported_alone(cache: Path):
    m, key = manifest.read(cache), block.value_key(2, COLUMNS["name"])
    sizes = np.ones(m.rows_per_block, np.uint64)
    text = bytearray(b"x" * m.rows_per_block)
    text[5] = 0xFF  # in no UTF-8
    rewrite(cache, 0, lambda values: put_body(cache, 0, values, key, sizes.tobytes() + text))
    problem = the_problem(cache)
    row = 2 * m.rows_per_block + 5
    assert (problem.block, problem.column, problem.rows) == (2, "name", range(row, row + 1))
    assert "block 2, row 5, column 'name': not a value" in problem.what
    assert problem.consequence.startswith(f"1 value of column 'name' lost: row {row} (source index ")


def count_bytes(cache: Path, column: str, raw_bytes: int) -> None:
    """Let the manifest say that a column has so many bytes."""
    totals = list(manifest.read(cache).totals)
    totals[COLUMNS[column]] = msgspec.structs.replace(totals[COLUMNS[column]], raw_bytes=raw_bytes)
    reseal(cache, totals=tuple(totals))


def test_a_manifest_that_counts_wrong_is_reported_where_the_shards_are_sound(cache: Path):
    count_bytes(cache, "label", 10**6)
    problem = the_problem(cache)
    assert (problem.file, problem.column, problem.rows) == ("manifest.json", "label", range(0))
    assert unreadable(cache) == []


def test_blocks_of_more_bytes_than_the_manifest_says_are_lost_as_they_are_for_readers(cache: Path):
    count_bytes(cache, "name", 200)
    report = check(cache)
    assert {problem.column for problem in report.problems} == {"name"}
    assert "where there can be 200 at most" in report.problems[0].what
    assert report.source_indices().tolist() == unreadable(cache) != []


def test_a_shard_that_is_truncated_while_it_is_checked_is_a_problem_and_no_signal(cache: Path, monkeypatch):
    monkeypatch.setattr(scan, "WINDOW_BYTES", 4 << 10)  # else such a small file is read at once
    path, m = shard_path(cache, 1), manifest.read(cache)

    def cut(done: int, _: int) -> None:
        if done == (m.blocks_per_shard + 1) * m.rows_per_block:
            os.truncate(path, 8192)

    report = check(cache, num_workers=1, progress=cut)
    assert {problem.file for problem in report.problems} == {path.name}
    assert 0 not in {problem.block for problem in report.problems}
    assert all("ends after" in problem.what for problem in report.problems)
    assert len(report.source_indices()) == (m.blocks_per_shard - 1) * m.rows_per_block


@pytest.mark.parametrize("text", ["", "{}", "[1, 2]", '{"format": "shardcache", "version": 1}'])
def test_a_damaged_manifest_is_a_problem_that_costs_everything(cache: Path, text: str):
    (cache / "manifest.json").write_text(text)
    problem = the_problem(cache)
    assert (problem.file, problem.rows) == ("manifest.json", None)
    assert problem.consequence == "nothing of the cache can be read"


def test_a_flipped_bit_in_the_manifest_is_found(cache: Path):
    path = cache / "manifest.json"
    flip(path, path.read_bytes().index(b'"sha256":"') + 12)
    assert "its digest does not fit its content" in the_problem(cache).what


def test_what_is_no_cache_is_an_error_and_no_report(tmp_path: Path):
    with pytest.raises(CacheNotFoundError, match="not a cache"):
        verify(tmp_path)
    with pytest.raises(CacheNotFoundError, match="no such directory"):
        verify(tmp_path / "nothing")


def test_a_cache_of_a_later_format_is_an_error_and_no_report(cache: Path):
    path = cache / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"version":1', b'"version":99'))
    with pytest.raises(FormatVersionError, match="version 99"):
        verify(cache)


def test_files_that_are_not_of_the_cache_are_noted_and_do_no_harm(cache: Path):
    (cache / "README.txt").write_text("mine")
    (cache / "shard-00099.lmdb").write_bytes(b"one too many")
    report = check(cache)
    assert report
    assert report.notes == ("README.txt: is not a part of the cache", "shard-00099.lmdb: is not a part of the cache")


def test_an_error_of_the_progress_ends_the_check(cache: Path):
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(cache, progress=interrupt)


class Scenes:
    """Rows beyond 8 MiB, which have keys of their own, among small ones."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> bytes:
        return np.random.default_rng(index).bytes(9 << 20) if index in (1, 4) else b"small"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("integrity") / "scenes"
    shardcache.build(Scenes(), path, layout="source", block_bytes=1 << 30, progress=False)
    assert manifest.read(path).rows_per_block > 1
    return path


def test_a_large_row_is_checked_and_its_damage_costs_that_row_alone(scenes: Path, tmp_path: Path):
    assert check(scenes)
    cache = Path(shutil.copytree(scenes, tmp_path / "cache"))
    m, places = manifest.read(cache), places_of(shard_path(cache, 0))
    large = block.value_key(0, 0, 1)
    assert m.rows_per_block > 4
    assert block.value_key(0, 0, 4) in places
    flip(shard_path(cache, 0), places[large][0] + (5 << 20))
    problem = the_problem(cache)
    assert (problem.block, problem.column, problem.rows, problem.source_indices) == (0, "sample", range(1, 2), (1,))
    rewrite(cache, 0, lambda values: values.pop(large))
    assert "must have a value of key" in the_problem(cache).what


def test_images_that_cannot_be_decoded_here_are_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "cache"
    shardcache.build([image.new("RGB", (4, 4), (k, 0, 0)) for k in range(5)], path, progress=False)
    assert check(path).notes == ()
    monkeypatch.setitem(sys.modules, "PIL", None)  # what an import meets where Pillow is not installed
    report = check(path)
    assert report
    assert len(report.notes) == 1
    assert "column 'sample': its bytes were checked, but not decoded" in report.notes[0]


@pytest.mark.parametrize("seed", range(8))
def test_whatever_bit_flips_verify_finds_it_and_a_reader_never_gets_a_wrong_sample(cache: Path, seed: int):
    """Ten flips one after the other, each in a file and at a place of its own."""
    dice = random.Random(seed)
    for _ in range(10):
        path = dice.choice(sorted(cache.glob("shard-*")))
        offset, bit = dice.randrange(path.stat().st_size), dice.randrange(8)
        flip(path, offset, bit)
        report = check(cache, num_workers=1)
        assert not report, f"{path.name}: bit {bit} of byte {offset}"
        assert report.source_indices().tolist() == unreadable(cache)
        flip(path, offset, bit)
    assert check(cache)


def test_a_report_of_more_samples_than_memory_could_count_is_made(cache: Path):
    """A manifest of a few kilobytes may say that there are 2^48 of them."""
    seals = manifest.read(cache).shards[:1] * 64
    huge = {"samples": 2**48, "rows_per_block": 1024, "blocks_per_shard": 2**32, "layout": "source", "shards": seals}
    whole = msgspec.structs.replace(manifest.read(cache), digest="", **huge)
    (cache / spec.MANIFEST_NAME).write_bytes(manifest.encode(whole))
    assert check(cache).as_dict()["samples_lost"] == 2**48


def test_samples_that_are_lost_twice_are_counted_once(cache: Path):
    rows = [range(4, 9), range(3), range(2, 5), range(8, 8), None]
    found = Report(cache, tuple(Problem("f", "k", "w", one) for one in rows), manifest=manifest.read(cache))
    assert found.samples_lost == 9
    assert len(np.unique(found.source_indices())) == 9


class Annotated:
    """Samples in which something lies inside of something else; of some, one value has another shape."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, object]:
        where = {"x": float(index), "name": f"point {index}"}
        return {"where": where, "tags": {"a": 1, "b": 2} if index % 50 else "none"}


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("integrity") / "annotated"
    shardcache.build(Annotated(), path, block_bytes=256, layout="source", progress=False)
    return path


@pytest.mark.parametrize(
    ("column", "form", "says"),
    [
        ("where/x", 0xFF, "form 255 where the manifest says fixed"),
        ("where/x", 0x11, "form 17 where the manifest says fixed"),
    ],
)
def test_an_index_that_contradicts_the_manifest_costs_that_block_for_verify_and_for_readers(
    annotated: Path, tmp_path: Path, column: str, form: int, says: str
):
    assert check(annotated)
    path = Path(shutil.copytree(annotated, tmp_path / "cache"))
    m = manifest.read(path)
    position = [one.name for one in m.columns].index(column)
    index = bytearray(indices(m, values_of(shard_path(path, 0))[spec.INDEX_KEY]))
    assert index[len(m.columns) + position] in (1, 2)
    index[len(m.columns) + position] = form

    def change(values: dict[bytes, bytes]) -> None:
        put_body(path, 0, values, spec.INDEX_KEY, bytes(index))
        if form == 0xFF:
            del values[block.value_key(1, position)]

    rewrite(path, 0, change)
    problem = check(path).problems[0]
    rows = range(m.rows_per_block, 2 * m.rows_per_block)
    assert (problem.block, problem.column, problem.rows) == (1, column, rows)
    assert f"shard 00000, block 1, column '{column}': {says}" in problem.what
    with pytest.raises(DamagedError, match=f"shard 00000, block 1, column '{column}': "):
        list(shardcache.CachedDataset(path, batch_size=m.rows_per_block))
    if form == 0xFF:
        with pytest.raises(DamagedError, match=f"shard 00000, block 1, column '{column}': form 255"):
            shardcache.open(path)[rows[0]]


def indices(m: manifest.Manifest, value: bytes) -> bytes:
    """The body of a shard's index."""
    return block.open_body(memoryview(value), Place(bytes.fromhex(m.cache_id), 0, spec.INDEX_KEY)).tobytes()


def test_a_block_of_which_all_samples_were_skipped_is_sound(tmp_path: Path):
    class Gaps(Pictures):
        def __getitem__(self, index: int) -> dict[str, object]:
            if 40 <= index < 120:
                raise OSError("a disk that fails")
            return super().__getitem__(index)

    options = {"block_bytes": 4 << 10, "layout": "source", "on_error": "skip", "max_errors": 100}
    cache = shardcache.build(Gaps(), tmp_path / "cache", progress=False, **options)
    assert cache.manifest.rows_per_block < 40
    assert check(cache.path)
