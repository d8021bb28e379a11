"""What ``shardcache build --executor`` knows. Processes of this machine are what ``--num-workers`` starts."""

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

from shardcache.errors import BuildError, MissingExtraError, UsageError

ENGINES = ("dask", "threads")
_THREADS = 8


@contextmanager
def executor(engine: str | None, address: str | None, num_workers: int) -> Iterator[Executor | None]:
    """The executor that is asked for, for as long as the block lasts."""
    if (engine == "dask") != (address is not None):
        raise UsageError("--executor dask and --address URL, of its scheduler, go together")
    if engine == "threads":
        with ThreadPoolExecutor(num_workers or _THREADS) as threads:
            yield threads
    elif engine == "dask":
        yield from _dask(str(address))
    else:
        yield None


def _dask(address: str) -> Iterator[Executor]:
    try:
        from distributed import Client
    except ImportError:
        raise MissingExtraError("--executor dask needs dask.distributed: pip install 'shardcache[dask]'") from None
    try:
        client = Client(address)
    except (OSError, ValueError) as error:
        raise BuildError(f"no dask scheduler answers at {address} ({error})") from error
    with client:
        yield client.get_executor()
