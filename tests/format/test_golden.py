"""Caches that were written once are read for ever."""

from pathlib import Path

import numpy as np
import pytest
import torch

import shardcache
from shardcache.format import spec
from tests.exact import exact
from tests.golden.contents import CONTENTS, NEW_TENSORS, Box, Point, kept
from tests.strategies import QUIET

GOLDEN = Path(__file__).parents[1] / "golden"
VERSIONS = range(1, spec.FORMAT_VERSION + 1)

pytestmark = QUIET


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", CONTENTS)
def test_a_golden_cache_holds_what_was_written(name, version):
    if name == "new_tensors" and not all(hasattr(torch, dtype) for dtype in NEW_TENSORS):
        pytest.skip("this PyTorch lacks some of the dtypes")
    if name == "long_doubles" and np.finfo(np.longdouble).nmant != 63:
        pytest.skip("long doubles are something else on this platform")
    cache = shardcache.open(GOLDEN / f"v{version}" / name, types=[Point, Box])
    assert cache.manifest.version == version
    assert [exact(sample) for sample in cache[:]] == [exact(sample) for sample in kept(name)]
    assert shardcache.verify(cache.path)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_golden_caches_are_all_there_and_small(version):
    found = GOLDEN / f"v{version}"
    assert {path.name for path in found.iterdir()} == set(CONTENTS)
    assert sum(file.stat().st_size for file in found.rglob("*") if file.is_file()) < 350_000


@pytest.mark.parametrize("version", VERSIONS)
def test_the_golden_caches_have_every_type_and_every_form(version):
    manifests = [shardcache.open(path).manifest for path in sorted((GOLDEN / f"v{version}").iterdir())]
    types = {column.type for manifest in manifests for column in manifest.columns}
    assert types == set("int float bool str bytes image scalar array tensor nested".split())
    forms = {form for manifest in manifests for totals in manifest.totals for form in totals.forms}
    assert forms >= {1, 2, 3, 0x10, 0x11, 0x12, 0x13}
    assert any(len(manifest.shards) > 1 for manifest in manifests)
    assert {manifest.layout for manifest in manifests} == {"shuffled", "source", "window"}
    assert any(manifest.kept < manifest.samples for manifest in manifests)
