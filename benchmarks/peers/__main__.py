"""Measure shardcache beside its peers: ``python -m benchmarks.peers --workload patches --peers litdata,ffcv``.

Each peer writes the workload once, delivers an epoch whose every sample is compared with the source, and is then
measured in turns with the others. A peer that is not installed is left out and said so. Results go to
``OUT/WORKLOAD.json``; ``python -m benchmarks.peers.report OUT`` makes tables and plots of all that lie there.
"""

import argparse
import contextlib
import json
import os
import tempfile
from pathlib import Path

from benchmarks.peers import ours, photographs, report
from benchmarks.peers.beton import FFCV_LOADER
from benchmarks.peers.data import SEED, WORKLOADS, prepare
from benchmarks.peers.grain_records import GRAIN
from benchmarks.peers.hugging_face import HF_ITERABLE, HF_MAP
from benchmarks.peers.lit import LITDATA
from benchmarks.peers.measure import Measurement, machine
from benchmarks.peers.memory import MEMORY
from benchmarks.peers.mosaic import STREAMING
from benchmarks.peers.peer import Peer
from benchmarks.peers.plain import MEMMAP, OBJECTS, SOURCE
from benchmarks.peers.tars import WEBDATASET
from benchmarks.peers.td import TENSORDICT

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        *ours.ALL,
        MEMORY,
        OBJECTS,
        SOURCE,
        MEMMAP,
        LITDATA,
        STREAMING,
        WEBDATASET,
        HF_MAP,
        HF_ITERABLE,
        FFCV_LOADER,
        TENSORDICT,
        GRAIN,
    )
}
PARTS = ("cold", "builds", "smallest")


def _chosen(names: str) -> list[Peer]:
    peers = []
    for peer in PEERS.values():
        if peer.name.startswith("shardcache") or names == "all" or peer.name in names.split(","):
            if missing := peer.lacks():
                print(f"{peer.name} is left out: {missing}")
            else:
                peers.append(peer)
    return peers


def run(arguments: argparse.Namespace, root: Path) -> list[str]:
    """Of what failed, what it said."""
    failures: list[str] = []
    if note := photographs.missing():
        print(note)
    for name in arguments.workload.split(",") if arguments.workload != "all" else WORKLOADS:
        source = prepare(WORKLOADS[name], root, arguments.short)
        peers = _chosen(arguments.peers)
        measurement = Measurement(source, root, peers, arguments.seconds, lambda line: print(line, flush=True))
        with contextlib.closing(measurement):
            carry_out(measurement, arguments)
        failures += measurement.failures
        found = {**measurement.result, "seed": SEED, "rounds": arguments.rounds, "machine": machine()}
        found["photographs"] = len(photographs.paths())
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    report.write(arguments.out)
    return failures


def carry_out(measurement: Measurement, arguments: argparse.Namespace) -> None:
    measurement.write()
    measurement.check()
    measurement.rounds(arguments.rounds)
    few = min(3, arguments.rounds)
    if "cold" in arguments.parts:
        measurement.cold(few)
    if "builds" in arguments.parts:
        measurement.builds(few)
    if "smallest" in arguments.parts:
        measurement.smallest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", default="all", help=f"comma-separated, of {', '.join(WORKLOADS)}")
    parser.add_argument("--peers", default="all", help=f"comma-separated, of {', '.join(PEERS)}")
    parser.add_argument(
        "--parts", type=lambda text: text.split(","), default=PARTS, help=f"of {', '.join(PARTS)}, or none"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement, at least")
    parser.add_argument("--short", action="store_true", help="a hundredth of the data, one round: does everything run?")
    parser.add_argument("--data", type=Path, help="where data are made and kept; default: a temporary folder")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="where results go")
    arguments = parser.parse_args()
    if arguments.short:
        arguments.rounds, arguments.seconds = 1, 0.05
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as temporary:
        failures = run(arguments, arguments.data or Path(temporary))
    if failures:
        raise SystemExit("failed:\n" + "\n".join(failures))


if __name__ == "__main__":
    main()
