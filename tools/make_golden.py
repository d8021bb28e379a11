#!/usr/bin/env python3
"""Write the golden caches of the current format version: tests/golden/v1/ and so on.

Caches that are there stay as they are: once a version is released, its caches are what readers must go on reading.
With --replace they are written anew, which is for a format that nobody has used yet.
"""

import argparse
import os
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_AGAIN = "SHARDCACHE_MAKE_GOLDEN"


def run_in_the_tools_environment() -> None:
    """Start again with the interpreter that the other tools use."""
    if os.environ.get(_AGAIN):
        return
    os.environ[_AGAIN] = "1"
    script = f'source "{ROOT}/tools/_venv.sh"; exec "$venv/bin/python" "$@"'
    os.execvp("bash", ["bash", "-euc", script, "make_golden", str(Path(__file__).resolve()), *sys.argv[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replace", action="store_true", help="also write those that are there")
    replace = parser.parse_args().replace
    sys.path.insert(0, str(ROOT))

    import shardcache
    from shardcache.format import spec
    from tests.golden.contents import CONTENTS, samples

    spec.MIN_SHARD_BYTES = 4000  # several shards in a small cache
    warnings.simplefilter("ignore")  # some of the dtypes are experimental, some deprecated
    folder = ROOT / "tests" / "golden" / f"v{spec.FORMAT_VERSION}"
    for name, (_, _, options) in CONTENTS.items():
        if (folder / name).exists() and not replace:
            print(f"{name}: stays as it is")
            continue
        cache = shardcache.build(samples(name), folder / name, if_exists="replace", progress=False, **options)
        (folder / name / spec.PROVENANCE_NAME).unlink()
        print(cache)
    total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder.relative_to(ROOT)}: {total:,} bytes")


if __name__ == "__main__":
    run_in_the_tools_environment()
    main()
