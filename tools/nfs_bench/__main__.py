# SPDX-License-Identifier: GPL-2.0
"""`python3 tools/env enter -- python3 tools/nfs_bench`: a table, ratios to NFS over TCP."""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import rig  # noqa: E402
from nfs_bench import ways  # noqa: E402
from rig import nfs  # noqa: E402

CID = 3
# As in tools/bench: an emulator copies `rep movsb` byte by byte.
CPU = "max,-erms,-fsrm"
# How often the emulation may fail before it is given up.
TRAPS_MAX = 3


@dataclasses.dataclass(frozen=True)
class Work:
    """What fio does, and what of its report counts."""

    name: str
    unit: str
    arguments: tuple[str, ...]
    side: str
    field: str
    scale: float


def data(name: str, side: str, mode: str, block: str, size: str, unit: str, field: str, scale: float) -> Work:
    # Past the client's cache, with some requests under way.
    arguments = ("--ioengine=libaio", "--iodepth=8", "--direct=1", f"--rw={mode}", f"--bs={block}", f"--size={size}")
    return Work(name, unit, (*arguments, "--filename=data"), side, field, scale)


def metadata(name: str, engine: str) -> Work:
    arguments = (f"--ioengine={engine}", "--nrfiles=200", "--filesize=4k", "--openfiles=1", "--filename_format=f.$filenum")
    # fio counts all of them as reads.
    return Work(name, "1/s", arguments, "read", "iops", 1.0)


WORKS = (
    data("write 1 MiB", "write", "write", "1M", "64M", "MB/s", "bw_bytes", 1e-6),
    data("read 1 MiB", "read", "read", "1M", "64M", "MB/s", "bw_bytes", 1e-6),
    data("random write 4 KiB", "write", "randwrite", "4k", "4M", "1/s", "iops", 1.0),
    data("random read 4 KiB", "read", "randread", "4k", "4M", "1/s", "iops", 1.0),
    metadata("create", "filecreate"),
    metadata("stat", "filestat"),
    metadata("unlink", "filedelete"),
)


def measure(guest: rig.Guest) -> dict[str, float]:
    """All works, one after the other, in one run of fio: to start it takes seconds."""
    command = ["fio", "--output-format=json", "--directory", nfs.MOUNT]
    for work in WORKS:
        command += [f"--name={work.name}", "--stonewall", *work.arguments]
    output = guest.run(command, timeout=900).stdout
    jobs = {job["jobname"]: job for job in json.loads(output[output.index("{") :])["jobs"]}
    return {work.name: jobs[work.name][work.side][work.field] * work.scale for work in WORKS}


# By way and work, one of each round.
Samples = dict[tuple[str, str], list[float]]


def report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def one_round(machines: ways.Machines, chosen: list[ways.Way], name: str) -> dict[tuple[str, str], float]:
    """All ways in turn: what drifts meets all."""
    found: dict[tuple[str, str], float] = {}
    for way in chosen:
        report(f"{name}: {way.name}")
        with way.mounted(machines):
            values = measure(machines.guest)
        report("  " + ", ".join(f"{work} {value:.4g}" for work, value in values.items()))
        found |= {(way.name, work): value for work, value in values.items()}
        machines.host.shell(f"rm -rf {nfs.EXPORT}/*")
    return found


def rounds(chosen: list[ways.Way], count: int, connections: int) -> Samples:
    """As many rounds as asked for; one in which the emulation failed is measured again, with new machines."""
    samples: Samples = {}
    traps = done = 0
    while done < count:
        try:
            with opened(connections) as machines:
                one_round(machines, chosen, "warming up")
                while done < count:
                    for key, value in one_round(machines, chosen, f"round {done + 1} of {count}").items():
                        samples.setdefault(key, []).append(value)
                    done += 1
        except rig.EmulationTrap as trap:
            traps += 1
            if traps > TRAPS_MAX:
                raise
            report(f"{str(trap).splitlines()[0]}: going on with new machines")
    return samples


def table(chosen: list[ways.Way], samples: Samples) -> str:
    lines = ["| | " + " | ".join(work.name for work in WORKS) + " |", "|---" * (len(WORKS) + 1) + "|"]
    for way in chosen:
        cells = [cell(samples, way.name, work) for work in WORKS]
        lines.append(f"| {way.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(samples: Samples, way: str, work: Work) -> str:
    """The median and, in the same round, the ratio to the baseline."""
    values = samples[way, work.name]
    text = f"{statistics.median(values):.4g} {work.unit}"
    baseline = samples.get((ways.BASELINE, work.name))
    if baseline is None:
        return text
    ratio = statistics.median(ours / theirs for ours, theirs in zip(values, baseline, strict=True))
    return f"{text} ({ratio:.2f})"


@contextlib.contextmanager
def opened(connections: int):
    with rig.host(cpu=CPU) as host:
        host.load("host", "c")
        nfs.load(host)
        server = ways.prepare_host(host)
        server.start()
        guest = host.guest(
            cid=CID,
            memory=1024,
            programs=ways.GUEST_PROGRAMS,
            modules=ways.GUEST_MODULES,
            devices=ways.DEVICES,
            share_memory=True,
        )
        with guest as machine:
            machine.run(["modprobe", "nfsv4"])
            machines = ways.Machines(host, machine, server, connections)
            ways.export(machines)
            yield machines


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tools/nfs_bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count (%(default)s)")
    parser.add_argument("--nconnect", type=int, default=1, help="connections of each mount of NFS (%(default)s)")
    names = [way.name for way in ways.WAYS]
    parser.add_argument("--way", action="append", choices=names, help="only this one (may be repeated)")
    options = parser.parse_args(arguments)
    chosen = [way for way in ways.WAYS if not options.way or way.name in options.way]
    print(table(chosen, rounds(chosen, options.rounds, options.nconnect)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
