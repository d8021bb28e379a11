"""Sources over files that the libraries wrote whose formats they are."""

import datetime
import decimal
import io
import multiprocessing
import os
import pickle
import random
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest

import shardcache
from shardcache import MissingExtraError, SampleError, SourceError, UnsupportedTypeError, UsageError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(path: str, data: bytes = b"x") -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data)


def png(colour: int = 0) -> bytes:
    image = pytest.importorskip("PIL.Image")
    out = io.BytesIO()
    image.new("RGB", (3, 2), (colour, 0, 0)).save(out, "PNG")
    return out.getvalue()


def rows(source: Any) -> list[Any]:
    return [source[index] for index in range(len(source))]


def write_tar(path: str) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(path) as writer:
        for number in range(7):
            sample = {"__key__": f"part.x/{number:03}", "PNG": png(number), "cls": str(number).encode()}
            writer.write(sample | ({"seg.npy": b"deep"} if number % 2 else {}))


def write_parquet(path: str, count: int = 25) -> Any:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pa.table(
        {
            "id": pa.array(range(count)),
            "small": pa.array(np.arange(count), pa.int16()),
            "score": pa.array([None if k == 3 else k / 2 for k in range(count)], pa.float32()),
            "flag": pa.array([k % 2 == 0 for k in range(count)]),
            "text": [f"row {k}" for k in range(count)],
            "data": pa.array([bytes([k]) for k in range(count)], pa.large_binary()),
            "ragged": pa.array([[1] * (k % 3) for k in range(count)], pa.list_(pa.int8())),
            "holes": pa.array([[1, None], None, []] + [[2]] * (count - 3), pa.list_(pa.int8())),
            "vector": pa.array([[k, k] for k in range(count)], pa.list_(pa.float32(), 2)),
            "inner": [{"a": k, "b": {"c": "deep"}} for k in range(count)],
            "label": pa.array(["cat", "dog"] * count)[:count].dictionary_encode(),
            "when": pa.array([datetime.datetime(2020, 1, 2, 3)] * count, pa.timestamp("ms", "UTC")),
            "day": [datetime.date(2020, 1, 2)] * count,
        }
    )
    parquet.write_table(table, path, row_group_size=10)


def write_saved(path: str) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "sound": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "label": datasets.ClassLabel(names=["a", "b"]),
            "text": datasets.Value("string"),
        }
    )
    put("outside.png", png(77))
    content: dict[str, list[Any]] = {
        "image": [{"bytes": png(k), "path": None} for k in range(4)] + [{"bytes": None, "path": "outside.png"}, None],
        "sound": [{"bytes": b"RIFF" + bytes([k]), "path": None} for k in range(6)],
        "label": [0, 1] * 3,
        "text": [f"row {k}" for k in range(6)],
    }
    datasets.disable_progress_bars()
    made = datasets.Dataset.from_dict(content, features=features)
    made.cast_column("sound", datasets.Audio()).save_to_disk(path)  # to make it at once needs an encoder of sound


def write_lmdb(path: str) -> None:
    with lmdb.open(path, map_size=1 << 20, max_dbs=1) as env:
        with env.begin(write=True) as txn:
            for number in (3, 1, 2):
                txn.put(b"key %d" % number, b"value %d" % number)
        inner = env.open_db(b"inner")
        with env.begin(write=True, db=inner) as txn:
            txn.put(b"k", b"v")


def write_flat_lmdb(path: str) -> None:
    with lmdb.open(path, subdir=False, map_size=1 << 20) as env, env.begin(write=True) as txn:
        for number in range(40):
            txn.put(b"%03d" % number, bytes(number))


def test_files_are_their_paths_and_their_bytes_in_the_order_of_paths():
    for name in ("b/2.wav", "a.wav", "b/c/1.wav", "b/note.txt"):
        put(name, name.encode())
    source = shardcache.Files("**/*.wav")
    assert rows(source) == [{"path": p, "data": p.encode()} for p in ("a.wav", "b/2.wav", "b/c/1.wav")]


def test_patterns_have_braces_and_each_file_comes_once_in_the_order_of_the_patterns():
    for number in range(8, 12):
        put(f"s-{number:03}.tar")
    put("x[1].wav")
    assert shardcache.Files("s-{009..010}.tar", "s-*.tar").paths == [f"s-{k:03}.tar" for k in (9, 10, 8, 11)]
    assert shardcache.Files("s-{011,008}.tar").paths == ["s-008.tar", "s-011.tar"]
    assert shardcache.Files("x[1].wav").paths == ["x[1].wav"]


def test_links_are_followed_and_a_circle_of_them_ends():
    put("real/a.wav")
    Path("link.wav").symlink_to("real/a.wav")
    Path("real/loop").symlink_to(Path.cwd())
    Path("gone.wav").symlink_to("nowhere")
    assert shardcache.Files("**/*.wav").paths == ["link.wav", "real/a.wav"]
    put("classes/cat/1.png")
    Path("classes/cat/loop").symlink_to(Path.cwd() / "classes")
    assert [Path(path).name for path, _ in shardcache.ImageFolder("classes").samples] == ["1.png"]


def test_no_match_and_no_pattern_are_errors():
    with pytest.raises(SourceError, match=r"no file matches '\*\*/\*\.flac' \(in /"):
        shardcache.Files("**/*.flac")
    with pytest.raises(UsageError, match="a pattern of files is needed"):
        shardcache.Files()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read_is_an_error_that_names_it():
    put("a.wav")
    Path("a.wav").chmod(0)
    with pytest.raises(SampleError, match=r"PermissionError: .*a\.wav"):
        shardcache.build(shardcache.Files("*.wav"), "cache", progress=False)


def test_a_file_that_is_gone_is_an_error_that_names_it():
    put("a.wav")
    source = shardcache.Files("*.wav")
    Path("a.wav").unlink()
    with pytest.raises(SampleError, match=r"FileNotFoundError: .*a\.wav"):
        shardcache.build(source, "cache", progress=False)


def test_an_image_folder_has_the_classes_and_the_order_of_torchvisions():
    for name in ("dog/2.png", "dog/10.PNG", "dog/sub/1.jpg", "cat/x.webp", "cat/notes.txt", "top.png"):
        put(f"root/{name}", name.encode())
    source = shardcache.ImageFolder("root")
    assert source.classes == ["cat", "dog"]
    assert rows(source) == [
        {"image": b"cat/x.webp", "label": 0, "class": "cat"},
        {"image": b"dog/10.PNG", "label": 1, "class": "dog"},
        {"image": b"dog/2.png", "label": 1, "class": "dog"},
        {"image": b"dog/sub/1.jpg", "label": 1, "class": "dog"},
    ]


def test_an_image_folder_without_classes_or_images_is_an_error():
    with pytest.raises(SourceError, match="there must be a folder, there is nothing"):
        shardcache.ImageFolder("nowhere")
    Path("root").mkdir()
    with pytest.raises(SourceError, match="a folder for each class, there is none"):
        shardcache.ImageFolder("root")
    put("root/dog/notes.txt")
    with pytest.raises(SourceError, match="root/dog: a class must have images"):
        shardcache.ImageFolder("root")


def test_tars_hold_the_samples_that_webdataset_finds_in_them():
    webdataset = pytest.importorskip("webdataset")
    write_tar("t-000.tar")
    write_tar("t-001.tar")
    source = shardcache.WebDataset("t-{000..001}.tar")
    theirs = []
    for path in source.paths:
        with open(path, "rb") as stream:
            files = webdataset.tariterators.tar_file_expander([{"url": path, "stream": stream}])
            theirs += list(webdataset.tariterators.group_by_keys(files))
    plain = [{k: v for k, v in sample.items() if k not in ("__url__", "__local_path__")} for sample in theirs]
    assert rows(source) == plain
    assert [set(sample) for sample in rows(source)[:2]] == [
        {"__key__", "png", "cls"},
        {"__key__", "png", "cls", "seg.npy"},
    ]


def test_a_tar_that_was_cut_off_is_an_error():
    write_tar("whole.tar")
    data = Path("whole.tar").read_bytes()
    with tarfile.open("whole.tar") as tar:
        middle = tar.getmembers()[4].offset_data + 20
    for cut in (300, middle):
        Path("cut.tar").write_bytes(data[:cut])
        with pytest.raises(SourceError, match=r"cut\.tar: "):
            shardcache.WebDataset("cut.tar")


def test_a_tar_that_is_compressed_or_has_a_part_twice_is_an_error():
    with tarfile.open("a.tar.gz", "w:gz"):
        pass
    with pytest.raises(
        SourceError, match=r"a\.tar\.gz: is compressed \(gzip\), .*decompress it, or build from WebDatasetStream"
    ):
        shardcache.WebDataset("a.tar.gz")
    put("0.cls")
    with tarfile.open("twice.tar", "w") as tar:
        tar.add("0.cls")
        tar.add("0.cls")
    with pytest.raises(SourceError, match="sample '0' has a part 'cls' already"):
        shardcache.WebDataset("twice.tar")


def test_parquet_values_keep_their_types():
    write_parquet("t.parquet")
    source = shardcache.Parquet("*.parquet")
    assert len(source) == 25
    first, fourth = source[0], source[3]
    assert {name: type(value) for name, value in first.items()} == {
        "id": int,
        "small": np.int16,
        "score": np.float32,
        "flag": bool,
        "text": str,
        "data": bytes,
        "ragged": np.ndarray,
        "holes": list,
        "vector": np.ndarray,
        "inner": dict,
        "label": str,
        "when": np.datetime64,
        "day": np.datetime64,
    }
    assert fourth["score"] is None
    assert first["holes"] == [np.int8(1), None]
    assert (first["ragged"].dtype, source[2]["ragged"].tolist()) == (np.int8, [1, 1])
    assert first["inner"] == {"a": 0, "b": {"c": "deep"}}
    assert first["when"] == np.datetime64("2020-01-02T03:00:00.000")
    assert [row["id"] for row in rows(source)] == list(range(25))


def test_parquet_keeps_no_more_row_groups_than_its_bound_allows(monkeypatch: pytest.MonkeyPatch):
    write_parquet("t.parquet", 100)
    source = shardcache.Parquet("t.parquet")
    rows(source)
    assert len(source._kept) == 10
    monkeypatch.setattr("shardcache.builder.sources.parquet._KEPT_BYTES", 1)
    assert [row["id"] for row in rows(source)] == list(range(100))
    assert len(source._kept) == 1


def test_parquet_files_and_columns_that_do_not_fit_are_named():
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"x": [[{"q": decimal.Decimal("1.5")}]], "y": [1]}), "a.parquet")
    with pytest.raises(UnsupportedTypeError, match=r"a\.parquet, column 'x\[\]\.q': values of type decimal"):
        shardcache.Parquet("a.parquet")
    assert rows(shardcache.Parquet("a.parquet", columns=["y"])) == [{"y": 1}]
    with pytest.raises(UsageError, match="there is no column 'z'; the columns are x, y"):
        shardcache.Parquet("a.parquet", columns=["z"])
    parquet.write_table(pa.table({"y": ["text"]}), "b.parquet")
    with pytest.raises(
        SourceError, match=r"b\.parquet: must have the columns of a\.parquet \(y: int64\), has y: string"
    ):
        shardcache.Parquet("?.parquet", columns=["y"])
    put("c.parquet", b"not this")
    with pytest.raises(SourceError, match=r"c\.parquet: cannot be read as Parquet"):
        shardcache.Parquet("c.parquet")


def test_a_saved_dataset_has_images_and_audio_as_their_bytes():
    write_saved("saved")
    source = shardcache.HuggingFace("saved")
    assert source[1] == {"image": png(1), "sound": b"RIFF\x01", "label": 1, "text": "row 1"}
    assert source[4]["image"] == png(77)
    assert source[5]["image"] is None


def test_a_folder_of_several_saved_datasets_names_them():
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"x": [1]})}).save_to_disk("both")
    with pytest.raises(UsageError, match="holds several datasets; give one of them: both/train"):
        shardcache.HuggingFace("both")
    with pytest.raises(SourceError, match="cannot be read as a saved dataset"):
        shardcache.HuggingFace(".")


def test_an_lmdb_is_its_keys_and_values_and_nothing_is_written_beside_it():
    write_flat_lmdb("flat.lmdb")
    before = sorted(os.listdir("."))
    source, again = shardcache.LMDB("flat.lmdb"), shardcache.LMDB("flat.lmdb")
    assert source[39] == again[39] == {"key": b"039", "value": bytes(39)}
    assert sorted(os.listdir(".")) == before


def test_an_lmdb_may_be_a_folder_and_have_databases():
    write_lmdb("folder.lmdb")
    source = shardcache.LMDB("folder.lmdb")
    assert [source[k]["key"] for k in (1, 2, 3)] == [b"key 1", b"key 2", b"key 3"]
    with pytest.raises(SourceError, match=r"key b'inner': is a database; database='inner' reads it"):
        source[0]
    with lmdb.open("plain.lmdb") as env, env.begin(write=True) as txn:
        txn.put(b"k", bytes(48))  # as long as what stands for a database
    assert shardcache.LMDB("plain.lmdb")[0]["value"] == bytes(48)
    assert rows(shardcache.LMDB("folder.lmdb", database="inner")) == [{"key": b"k", "value": b"v"}]
    with pytest.raises(SourceError, match=r"folder\.lmdb: cannot be read: .*NOTFOUND"):
        shardcache.LMDB("folder.lmdb", database="other")
    put("text.lmdb", b"hello" * 1000)
    with pytest.raises(SourceError, match=r"text\.lmdb: cannot be opened as an LMDB"):
        shardcache.LMDB("text.lmdb")


@pytest.mark.parametrize("lines", [1, 3, 16, 100])
def test_lines_are_those_of_the_files_whatever_their_ends(lines: int):
    draw = random.Random(0)
    ends = (b"\n", b"\r\n", b"\n\n")
    put("1.txt", b"".join(b"line %d \xc3\xa9" % k + draw.choice(ends) for k in range(500)) + b"last")
    put("2.txt", b"")
    put("3.txt", b"a\n\nb\n\n")
    expected = []
    for path in ("1.txt", "2.txt", "3.txt"):
        whole = Path(path).read_text(encoding="utf-8").split("\n")
        whole = whole if whole[-1] else whole[:-1]
        expected += ["\n".join(whole[k : k + lines]) for k in range(0, len(whole), lines)]
    assert [row["text"] for row in rows(shardcache.Lines("*.txt", lines=lines))] == expected


def test_lines_longer_than_a_piece_of_the_file_are_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shardcache.builder.sources.lines._PIECE_BYTES", 7)
    expected = ["x" * (k % 23) for k in range(200)]
    put("1.txt", "\n".join(expected).encode() + b"end\n")
    assert [row["text"] for row in rows(shardcache.Lines("1.txt"))] == [*expected[:-1], expected[-1] + "end"]


def test_text_that_is_not_in_its_encoding_names_the_line():
    put("bad.txt", b"a\nb\nx\xffy\n")
    with pytest.raises(SampleError, match=r"bad\.txt, line 3: must be utf-8, has b'\\xff'"):
        shardcache.build(shardcache.Lines("bad.txt", lines=5), "cache", progress=False)
    assert shardcache.Lines("bad.txt", encoding=None)[2] == {"text": b"x\xffy"}
    assert shardcache.Lines("bad.txt", encoding="latin-1")[2] == {"text": "x\xffy"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lines": 0}, "lines must be 1 or more, was 0"),
        ({"encoding": "utf-16"}, "line ends are single bytes, like utf-8 or latin-1; was 'utf-16'"),
        ({"encoding": "klingon"}, "there is no such encoding"),
    ],
)
def test_lines_that_cannot_be_found_are_refused(arguments: dict[str, Any], message: str):
    put("a.txt")
    with pytest.raises(UsageError, match=message):
        shardcache.Lines("a.txt", **arguments)


def _classes(path: str) -> None:
    for number in range(30):
        put(f"{path}/{number % 3}/{number}.png", png(number))


def _text(path: str) -> None:
    put(path, b"".join(b"%d\n" % k for k in range(300)))


KINDS: list[tuple[Callable[..., Any], Callable[[str], None], str]] = [
    (shardcache.Files, lambda path: put(path, b"abc"), "one.wav"),
    (shardcache.ImageFolder, _classes, "classes"),
    (shardcache.WebDataset, write_tar, "some.tar"),
    (shardcache.Parquet, write_parquet, "some.parquet"),
    (shardcache.HuggingFace, write_saved, "saved"),
    (shardcache.LMDB, write_flat_lmdb, "flat.lmdb"),
    (shardcache.Lines, _text, "some.txt"),
]


@pytest.mark.parametrize(("kind", "write", "path"), KINDS, ids=[kind.__name__ for kind, _, _ in KINDS])
def test_workers_build_the_same_cache_and_it_holds_what_the_source_has(
    kind: Callable[..., Any], write: Callable[[str], None], path: str
):
    write(path)
    source = kind(path)
    alone = shardcache.build(source, "alone", progress=False)
    together = shardcache.build(source, "together", num_workers=2, progress=False)
    assert alone.digest == together.digest
    expected, found = rows(source), list(alone)
    assert [sorted(row) for row in found] == [sorted(row) for row in expected]
    for one, other in zip(expected, found, strict=True):
        for name in one:
            np.testing.assert_equal(other[name], one[name])
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_equal(copy[len(copy) - 1], expected[-1])


def test_a_source_can_be_sent_to_a_process_that_is_no_fork():
    write_flat_lmdb("flat.lmdb")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(rows, (shardcache.LMDB("flat.lmdb"),))[3] == {"key": b"003", "value": bytes(3)}


@pytest.mark.parametrize(("package", "source"), [("pyarrow", "Parquet"), ("datasets", "HuggingFace")])
def test_without_its_package_a_source_says_what_to_install(package: str, source: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package, None)
    put("a.parquet")
    with pytest.raises(MissingExtraError, match=f"this source needs {package}: pip install 'shardcache"):
        getattr(shardcache, source)("a.parquet" if source == "Parquet" else ".")
