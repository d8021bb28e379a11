"""Frames: what goes in comes out, and what is not one frame of the stated size is refused."""

import contextlib
import lzma
import random
import threading
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_sample_image

from shardcache.errors import UsageError
from shardcache.format import compression
from shardcache.format.compression import FrameError, codec_name, compress, decompress_into, parse_codec


def decompress(frame: bytes, size: int, kind: int = compression.ZSTD) -> bytes:
    out = bytearray(size)
    decompress_into(frame, memoryview(out), kind)
    return bytes(out)


@settings(max_examples=50)
@given(
    st.binary(max_size=300) | st.binary(max_size=9).map(lambda part: part * 40_000),
    st.sampled_from([-50, -1, 1, 3, 19, 22, "lzma"]),
)
def test_what_was_compressed_comes_back(data, level):
    frame = compress(data, level)
    assert decompress(frame, len(data), compression.method(level)) == data
    assert compress(data, level) == frame
    assert len(data) <= len(frame) * compression.MAX_RATIO


@pytest.mark.parametrize("level", [3, "lzma"])
def test_the_largest_ratio_is_below_the_limit(level):
    size = 50 << 20
    assert size <= len(compress(bytes(size), level)) * compression.MAX_RATIO


CODECS = {"none": None, "zstd": 3, "zstd:1": 1, "zstd:-50": -50, "zstd:22": 22, "lzma": "lzma"}


@pytest.mark.parametrize("codec", CODECS)
def test_a_codec_says_its_level(codec):
    assert parse_codec(codec) == CODECS[codec]
    assert parse_codec(codec_name(CODECS[codec])) == CODECS[codec]


@pytest.mark.parametrize(
    "codec", ["", "auto", "None", "zstd:23", "zstd:-51", "zstd:1.5", "zstd:1:2", "lz4", "none:1", "lzma:9"]
)
def test_a_codec_that_does_not_exist_is_refused(codec):
    with pytest.raises(UsageError, match="must be"):
        parse_codec(codec)


DATA = random.Random(0).randbytes(50_000) + bytes(50_000)


def frame_of(data: bytes, **options: object) -> bytes:
    return zstandard.ZstdCompressor(level=3, **options).compress(data)


@pytest.mark.parametrize(
    ("frame", "size"),
    [
        (compress(DATA, 3), len(DATA) - 1),
        (compress(DATA, 3), len(DATA) + 1),
        (compress(DATA, 3)[:-1], len(DATA)),
        (compress(DATA, 3)[:60], len(DATA)),
        (compress(DATA, 3)[:3], len(DATA)),
        (b"", 10),
        (b"", 0),
        (frame_of(DATA, write_content_size=False), len(DATA)),
        (bytes.fromhex("502a4d18") + (10).to_bytes(4, "little") + bytes(10), 10),  # a frame to be skipped
    ],
)
def test_what_is_not_one_frame_of_the_size_is_refused(frame, size):
    with pytest.raises(FrameError):
        decompress(frame, size)


STREAM = compress(DATA, "lzma")


@pytest.mark.parametrize(
    ("stream", "size"),
    [
        (STREAM, len(DATA) - 1),
        (STREAM, len(DATA) + 1),
        (STREAM, 0),
        (STREAM[:-1], len(DATA)),
        (STREAM[:60], len(DATA)),
        (STREAM[:1], len(DATA)),
        (STREAM + b"\0", len(DATA)),
        (bytes([compression.MAX_DISTANCE + 1]) + STREAM[1:], len(DATA)),
        (compress(DATA, 3), len(DATA)),
        (lzma.compress(DATA), len(DATA)),  # in a container
        (b"", 10),
        (b"", 0),
        (b"\0", 0),
        (b"\0\xff", 0),
    ],
)
def test_what_is_not_one_lzma_stream_of_the_size_is_refused(stream, size):
    with pytest.raises(FrameError):
        decompress(stream, size, compression.LZMA)


def test_lzma_takes_less_room_than_the_highest_level_of_zstd_and_less_again_for_pixels():
    photo = load_sample_image("china.jpg").tobytes()[: 768 << 10]
    stream, noise = compress(photo, "lzma"), random.Random(0).randbytes(100_000)
    assert decompress(stream, len(photo), compression.LZMA) == photo
    assert stream[0] == 3
    assert len(stream) < 0.85 * len(compress(photo, 22))
    assert compress(photo[::3], "lzma")[0] == 1
    assert compress(noise, "lzma")[0] == 0
    text = (Path(zstandard.__file__).parent / "__init__.py").read_bytes()
    assert compress(text, "lzma")[0] == 0


@pytest.mark.parametrize("distance", [1, 2, 3, 4])
def test_a_stream_of_differences_is_what_the_specification_says(distance):
    """Whatever distance a writer chooses."""
    data = np.frombuffer(DATA[-60_000:], np.uint8)
    differences = data.copy()
    differences[distance:] -= data[:-distance]
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": len(data)}]
    stream = lzma.compress(differences.tobytes(), lzma.FORMAT_RAW, filters=filters)
    assert decompress(bytes([distance]) + stream, len(data), compression.LZMA) == data.tobytes()


def test_a_dictionary_is_refused():
    words = zstandard.train_dictionary(1000, [random.Random(k % 5).randbytes(200) * 2 for k in range(200)])
    frame = zstandard.ZstdCompressor(dict_data=words).compress(DATA)
    with pytest.raises(FrameError):
        decompress(frame, len(DATA))


@pytest.mark.parametrize("level", [1, "lzma"])
def test_changed_bytes_are_refused_or_give_bytes_and_nothing_else_happens(level):
    frame = compress(DATA, level)
    draw = random.Random(2)
    for _ in range(300):
        changed = bytearray(frame)
        changed[draw.randrange(len(changed))] = draw.randrange(256)
        with contextlib.suppress(FrameError):
            assert len(decompress(bytes(changed), len(DATA), compression.method(level))) == len(DATA)


def test_threads_do_not_share_what_cannot_be_shared():
    frames = [compress(bytes([k]) * 100_000, 1) for k in range(8)]
    wrong = []

    def work(k: int) -> None:
        wrong.extend(k for _ in range(50) if decompress(frames[k], 100_000) != bytes([k]) * 100_000)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
