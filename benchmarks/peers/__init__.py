"""shardcache beside the data loaders that it could be replaced by: ``python -m benchmarks.peers --help``.

``data`` makes the workloads, one module a peer writes and reads them as its documentation recommends, ``contender``
measures one of them in a process of its own, ``measure`` lets them take turns, ``report`` and ``plots`` show what came
of it. ``tools/benchmark`` installs all of them and runs everything.
"""
