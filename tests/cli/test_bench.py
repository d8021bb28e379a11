"""``shardcache bench``."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import shardcache
from shardcache.cli import main


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("bench") / "cache"
    shardcache.build([(number, number // 100) for number in range(1000)], path, progress=False)
    return str(path)


def test_tells_samples_a_second_for_each_number_of_workers(cache: str) -> None:
    done = CliRunner().invoke(main, ["bench", cache, "-j", "0", "-j", "1", "-t", "2", "--seconds", "0.05", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [(row["num_workers"], row["threads"]) for row in found["speeds"]] == [(0, 0), (0, 2), (1, 0)]
    assert found["recommended"] in found["speeds"]
    most = found["limit_samples_per_second"]
    assert all(row["share"] == pytest.approx(row["samples_per_second"] / most) for row in found["speeds"])
    assert all(row["samples_per_second"] > 0 for row in found["speeds"])
    assert all(row["bytes_per_second"] == pytest.approx(16 * row["samples_per_second"]) for row in found["speeds"])


def test_prints_a_table_for_people(cache: str) -> None:
    done = CliRunner().invoke(main, ["bench", cache, "-j", "0", "-t", "0", "--seconds", "0.05"])
    assert done.exit_code == 0, done.output
    assert done.stdout.split()[:6] == ["workers", "threads", "samples/s", "bytes/s", "of", "limit"]
    assert done.stdout.splitlines()[-1].startswith("recommended: num_workers=0, threads=")


def test_measures_a_shuffle_against_a_full_one(cache: str) -> None:
    command = ["bench", cache, "--shuffle", "--label", "1", "--batch-size", "50", "--buffer", "1000000", "--json"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["this order"]["label_deviation"] == pytest.approx(found["a full shuffle"]["label_deviation"], rel=0.3)
    assert found["this order"]["displacement"] == pytest.approx(1 / 3, rel=0.1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--label", "1"], "go with --shuffle"),
        (["--shuffle", "--label", "colour"], "no column 'colour'"),
        (["--shuffle", "--buffer", "much"], "shuffle_buffer"),
        (["--batch-size", "0"], "batch-size"),
    ],
)
def test_says_what_is_wrong_with_its_options_in_one_line(cache: str, options: list[str], said: str) -> None:
    done = CliRunner().invoke(main, ["bench", cache, *options])
    assert done.exit_code != 0
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
