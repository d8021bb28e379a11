"""All peers with one workload: written, checked, and measured in turns, round after round."""

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import pages
from benchmarks.peers.contender import Contender
from benchmarks.peers.data import Source
from benchmarks.peers.peer import COLD, EPOCHS, MODES, RANDOM, SAMPLES, Peer, Task

BUILDERS = ("shardcache", "litdata")  # whose builds take turns
WITHOUT_A_FORMAT = ("memory", "objects", "source")
RAW_BYTES_OF_SMALLEST = 16 << 20  # the strongest settings take long: on so many bytes of the workload


class Measurement:
    """Of one workload; `result` is what is saved."""

    def __init__(self, source: Source, root: Path, peers: Iterable[Peer], seconds: float, say: Any) -> None:
        self.source, self.root, self.seconds, self.say = source, root, seconds, say
        workload = source.workload
        self.contenders = [
            Contender(peer, Task(source, root / workload.name / peer.store))
            for peer in peers
            if workload.kind in peer.kinds and workload.name in peer.workloads
        ]
        self.failures: list[str] = []
        self.result: dict[str, Any] = {
            "workload": workload.name,
            "title": workload.title,
            "samples": len(source),
            "raw_bytes": source.nbytes(),
            "batch_size": workload.batch_size,
            "peers": {
                each.peer.name: {"version": each.peer.version(), "note": each.peer.note} for each in self.contenders
            },
        }

    def close(self) -> None:
        for contender in self.contenders:
            contender.close()

    def _of(self, contender: Contender) -> dict[str, Any]:
        found: dict[str, Any] = self.result["peers"][contender.peer.name]
        return found

    def _modes(self, contender: Contender) -> list[str]:
        skipped = (SAMPLES, RANDOM, COLD) if self.source.workload.kind == "decoded" else ()
        return [mode for mode in contender.peer.modes if mode not in skipped]

    @contextlib.contextmanager
    def _turn(self, contender: Contender) -> Iterator[dict[str, Any]]:
        """One that fails is out, and what it said is part of the result."""
        try:
            yield self._of(contender)
        except RuntimeError as error:
            said = f"{error}: {error.__cause__}" if error.__cause__ else str(error)
            self._of(contender)["failed"] = said
            self.failures.append(said)
            self.say(f"{contender.peer.name:20} FAILED: {said}")
            contender.close()
            self.contenders.remove(contender)

    def write(self) -> None:
        for contender in list(self.contenders):
            record = self.root / self.source.workload.name / f"{contender.peer.store}.json"
            with self._turn(contender) as of_peer:
                if not record.exists():  # else it was written by another setting of this peer, or an earlier run
                    record.parent.mkdir(parents=True, exist_ok=True)
                    seconds, size = contender.write()
                    record.write_text(json.dumps({"build_s": [seconds], "bytes": size}))
                of_peer.update(json.loads(record.read_text()))
                seconds, size = of_peer["build_s"][0], of_peer["bytes"]
                self.say(f"{contender.peer.name:20} written in {seconds:.1f} s, {size / 1e6:.0f} MB")

    def check(self) -> None:
        for contender in list(self.contenders):
            mode = [mode for mode in self._modes(contender) if mode in EPOCHS][-1]
            with self._turn(contender) as of_peer:
                contender.check(mode)
                exactly = "as the source has it" if contender.peer.is_bit_exact else "by a decoder of its own"
                of_peer["checked"] = f"every sample once, {exactly}"
                self.say(f"{contender.peer.name:20} delivers every sample once, {exactly}")

    def rounds(self, count: int) -> None:
        """Each mode of each peer once a round, so that what the machine does meanwhile meets all alike."""
        for number in range(count):
            for mode in MODES:
                for contender in list(self.contenders):
                    if mode in self._modes(contender) and mode != COLD:
                        with self._turn(contender) as of_peer:
                            self._measured(number, contender, mode, of_peer)

    def _measured(self, number: int, contender: Contender, mode: str, of_peer: dict[str, Any]) -> None:
        seconds = (0, 10) if mode == COLD else (self.seconds, 2 * self.seconds)
        rate = contender.measure(mode, *seconds)
        of_peer.setdefault("rates", {}).setdefault(mode, []).append(rate)
        self.say(f"round {number + 1}, {mode:16} {contender.peer.name:20} {rate:12,.0f} samples/s")

    def cold(self, count: int) -> None:
        """Each in a new process, so that nobody has its files mapped while their pages are dropped."""
        self.close()
        for number in range(count):
            for contender in list(self.contenders):
                if COLD not in self._modes(contender):
                    continue
                folder = contender.task.folder if contender.task.folder.is_dir() else self.source.folder
                with self._turn(contender) as of_peer:
                    pages.drop(folder)
                    start = time.perf_counter()
                    size = pages.read(folder)
                    rate = size / (time.perf_counter() - start)
                    of_peer.setdefault("plain_cold_read_bytes_per_s", []).append(rate)
                    of_peer.setdefault("resident_when_cold", []).append(pages.drop(folder))
                    self._measured(number, contender, COLD, of_peer)
                    contender.close()

    def builds(self, count: int) -> None:
        """Builds side by side, of those that are compared."""
        for _ in range(count - 1):
            for contender in list(self.contenders):
                if contender.peer.name in BUILDERS:
                    with self._turn(contender) as of_peer:
                        seconds, _ = contender.write()
                        of_peer["build_s"].append(seconds)
                        self.say(f"{contender.peer.name:20} written again in {seconds:.1f} s")

    def smallest(self) -> None:
        """Bytes on disk at the default and the smallest setting, of the same first samples."""
        share = min(1.0, RAW_BYTES_OF_SMALLEST / self.source.nbytes())
        part = Source(self.source.workload, self.source.folder, max(4, int(share * len(self.source))))
        self.result["smallest_of"] = {"samples": len(part), "raw_bytes": part.nbytes()}
        seen = set()
        for contender in list(self.contenders):
            store = contender.peer.store
            if store in seen or contender.peer.name in WITHOUT_A_FORMAT:
                continue
            seen.add(store)
            other = Contender(contender.peer, Task(part, self.root / "smallest" / self.source.workload.name / store))
            with self._turn(contender) as of_peer, contextlib.closing(other):
                sizes = {name: other.write(name == "smallest")[1] for name in ("default", "smallest")}
                of_peer["bytes_of_part"] = sizes
                self.say(
                    f"{contender.peer.name:20} {sizes['default']:,} bytes by default, {sizes['smallest']:,} at least"
                )


def machine() -> dict[str, Any]:
    processor = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.split(":", 1)[1].strip()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "memory_bytes": memory,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
