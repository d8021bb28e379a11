"""Frames: what goes in comes out, and what is not one frame of the stated size is refused."""

import contextlib
import random
import threading

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from shardcache.errors import UsageError
from shardcache.format import compression
from shardcache.format.compression import FrameError, compress, decompress_into, parse_codec


def decompress(frame: bytes, size: int) -> bytes:
    out = bytearray(size)
    decompress_into(frame, memoryview(out))
    return bytes(out)


@settings(max_examples=50)
@given(
    st.binary(max_size=300) | st.binary(max_size=9).map(lambda part: part * 40_000),
    st.sampled_from([-50, -1, 1, 3, 19, 22]),
)
def test_what_was_compressed_comes_back(data, level):
    frame = compress(data, level)
    assert decompress(frame, len(data)) == data
    assert compress(data, level) == frame
    assert len(data) <= len(frame) * compression.MAX_RATIO


def test_the_largest_ratio_is_below_the_limit():
    size = 50 << 20
    assert size <= len(compress(bytes(size), 3)) * compression.MAX_RATIO


@pytest.mark.parametrize("codec", ["none", "zstd", "zstd:1", "zstd:-50", "zstd:22"])
def test_a_codec_says_its_level(codec):
    assert parse_codec(codec) == {"none": None, "zstd": 3, "zstd:1": 1, "zstd:-50": -50, "zstd:22": 22}[codec]


@pytest.mark.parametrize("codec", ["", "auto", "None", "zstd:23", "zstd:-51", "zstd:1.5", "zstd:1:2", "lz4", "none:1"])
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


def test_a_dictionary_is_refused():
    words = zstandard.train_dictionary(1000, [random.Random(k % 5).randbytes(200) * 2 for k in range(200)])
    frame = zstandard.ZstdCompressor(dict_data=words).compress(DATA)
    with pytest.raises(FrameError):
        decompress(frame, len(DATA))


def test_changed_bytes_are_refused_or_give_bytes_and_nothing_else_happens():
    frame = compress(DATA, 1)
    draw = random.Random(2)
    for _ in range(300):
        changed = bytearray(frame)
        changed[draw.randrange(len(changed))] = draw.randrange(256)
        with contextlib.suppress(FrameError):
            assert len(decompress(bytes(changed), len(DATA))) == len(DATA)


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
