# SPDX-License-Identifier: GPL-2.0
"""Other people's suites of file systems, unchanged: how they are run in a directory, and what they say of each case.

xfstests, the LTP and the Connectathon suite are in none of the places that programs come from here
(Debian, crates.io, PyPI): fsx is a part of the first two, and stress-ng tries the locks of the third.
"""

import json
import re
import typing
from collections.abc import Callable, Iterable

from rig import runs
from rig.host import Host

from . import crates

FSX = ("fsx", "0.3.2")
PJDFSTEST = ("pjdfstest", "0.2.2")

PASSED = "passed"
SKIPPED = "skipped"
FAILED = "failed"

# For one run of one program: the longest takes minutes on a quiet machine.
TIMEOUT = 1200.0


class Outcome(typing.NamedTuple):
    """What came of a case, and what the suite said of it."""

    status: str
    said: str = ""


Outcomes = dict[str, Outcome]


class Suite(typing.NamedTuple):
    """A suite, or a part of it; `run` does it in a directory of a machine."""

    name: str
    run: Callable[[Host, str], Outcomes]
    # How many cases pass at least: one that does nothing shows nothing.
    least: int
    # Whether each case passes on a file system that does its work.
    sound: bool = True


def output(host: Host, command: list[str]) -> tuple[int, str]:
    """Status and output of a program, which may fail."""
    result = host.run(command, timeout=TIMEOUT * runs.patience(), check=False)
    return result.status, result.stdout + result.stderr


def file_in(host: Host, path: str, text: str) -> str:
    host.shell(f"cat > {path}", input=text.encode())
    return path


# fsx: random operations on one file, whose content it knows.

FSX_MIXES = {
    "reads and writes": {"read": 10, "write": 10, "truncate": 3, "fsync": 1, "close_open": 1},
    "mappings": {"mapread": 10, "mapwrite": 10, "write": 3, "truncate": 3, "invalidate": 2, "sendfile": 3},
}
# Not in version 4.1 of NFS.
FSX_MIXES_4_2 = {
    "what servers do": {"copy_file_range": 5, "punch_hole": 5, "posix_fallocate": 3, "write": 8, "read": 8},
}
FSX_ALWAYS = {"posix_fadvise": 2, "fdatasync": 5}
# Those that have to be named to be left out.
FSX_DEFAULT = ("mapread", "mapwrite", "read", "truncate", "write")
# So that pages are read from the server again, and many at a time.
FORGET = "while :; do echo 1 > /proc/sys/vm/drop_caches; sleep 0.02; done"


def fsx_configuration(mix: dict[str, int]) -> str:
    weights = dict.fromkeys(FSX_DEFAULT, 0) | mix | FSX_ALWAYS
    lines = ["flen = 1048576", "[opsize]", "max = 262144", "[weights]"]
    return "\n".join([*lines, *(f"{name} = {weight}.0" for name, weight in weights.items())]) + "\n"


def fsx(operations: int, seeds: Iterable[int], version: str = "4.2") -> Suite:
    seeds = tuple(seeds)
    mixes = FSX_MIXES if version == "4.1" else FSX_MIXES | FSX_MIXES_4_2

    def run(host: Host, directory: str) -> Outcomes:
        program = host.program(crates.build(*FSX))
        outcomes = {}
        forgetting = host.start(["sh", "-c", FORGET])
        try:
            for name, mix in mixes.items():
                path = file_in(host, "/run/fsx.toml", fsx_configuration(mix))
                for seed in seeds:
                    command = [program, "-N", str(operations), "-S", str(seed), "-P", "/run", "-f", path]
                    status, said = output(host, [*command, f"{directory}/fsx"])
                    outcomes[f"{name}, seed {seed}"] = Outcome(FAILED if status else PASSED, said[-3000:])
        finally:
            forgetting.kill()
        return outcomes

    return Suite("fsx", run, len(mixes) * len(seeds))


# fio: what was written is known by the sums in it; a run of its own, which has no page of it yet, reads it.

FIO_JOBS = {
    "past the cache": ("--ioengine=libaio", "--iodepth=16", "--direct=1", "--bs=4k-256k"),
    "odd sizes": ("--ioengine=psync", "--bs_unaligned", "--bsrange=700-9000"),
    "mapped": ("--ioengine=mmap", "--bs=4k-64k"),
    "two processes": ("--ioengine=psync", "--bs=4k-128k", "--numjobs=2"),
}


def fio(mib: int) -> Suite:
    def run(host: Host, directory: str) -> Outcomes:
        command = ["fio", "--output-format=json", "--directory", directory, "--rw=randwrite", f"--size={mib}M"]
        command += ["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--end_fsync=1"]
        # One that is smaller is read in other pieces than it was written in, and version 4.1 has no ALLOCATE.
        command += ["--fallocate=truncate"]
        jobs = [word for name, job in FIO_JOBS.items() for word in (f"--name={name}", "--stonewall", *job)]
        outcomes = {}
        for phase, option in (("written", "--do_verify=0"), ("read", "--verify_only=1")):
            _, said = output(host, [*command, option, *jobs])
            outcomes |= {f"{name}: {phase}": outcome for name, outcome in fio_outcomes(said).items()}
            host.shell("echo 3 > /proc/sys/vm/drop_caches")
        return outcomes

    return Suite("fio", run, 2 * len(FIO_JOBS))


def fio_outcomes(said: str) -> Outcomes:
    """All processes of a job are one case."""
    outcomes: Outcomes = {}
    report, _ = json.JSONDecoder().raw_decode(said, said.index("{"))
    for job in report["jobs"]:
        if job["error"]:
            outcomes[job["jobname"]] = Outcome(FAILED, said[-3000:])
        else:
            outcomes.setdefault(job["jobname"], Outcome(PASSED))
    return outcomes


# pjdfstest: what POSIX says of each system call on files. NFS does not keep all of it, over TCP either.

PJDFSTEST_CONFIGURATION = """
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.02
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"""
PJDFSTEST_CASE = re.compile(r"^(\S+::\S+) +(ok|skipped|FAILED)\n((?:\t.*\n)*)", re.MULTILINE)
PJDFSTEST_STATUS = {"ok": PASSED, "skipped": SKIPPED, "FAILED": FAILED}
# Of the 398 cases of 0.2.2; the others need flags of FreeBSD, and a file system that is mounted anew.
PJDFSTEST_PASSES = 380


def pjdfstest(patterns: Iterable[str] = (), least: int = PJDFSTEST_PASSES) -> Suite:
    """All of it, or the cases whose names contain one of the patterns."""
    patterns = tuple(patterns)

    def run(host: Host, directory: str) -> Outcomes:
        program = host.program(crates.build(*PJDFSTEST))
        path = file_in(host, "/run/pjdfstest.toml", PJDFSTEST_CONFIGURATION)
        # For what must not be done across file systems.
        second = "/run/second"
        host.run(["mkdir", "-p", second])
        command = [program, "--configuration-file", path, "--path", directory, "--secondary-fs", second]
        command += ["--", *patterns]
        return pjdfstest_outcomes(output(host, command)[1])

    return Suite("pjdfstest", run, least, sound=False)


def pjdfstest_outcomes(said: str) -> Outcomes:
    return {name: Outcome(PJDFSTEST_STATUS[status], why) for name, status, why in PJDFSTEST_CASE.findall(said)}


# stress-ng: several processes at once, which look at what they get.

STRESS_LOCKS = ("flock", "locka", "lockf", "lockofd", "lockmix")
STRESS_LINE = re.compile(r"^stress-ng: \w+: +\[\d+\] (passed|failed|skipped): \d+: (.+)$", re.MULTILINE)
STRESS_NAME = re.compile(r"(\S+) \(\d+\)")


def stress_ng(stressors: Iterable[str], seconds: int) -> Suite:
    stressors = tuple(stressors)

    def run(host: Host, directory: str) -> Outcomes:
        command = ["stress-ng", "--verify", "--temp-path", directory, "--timeout", str(seconds)]
        command += ["--with", ",".join(stressors), "--seq", "2"]
        return stress_outcomes(output(host, command)[1])

    return Suite("stress-ng", run, len(stressors))


def stress_outcomes(said: str) -> Outcomes:
    failures = [line for line in said.splitlines() if ": fail:" in line]
    return {
        name: Outcome(status, "\n".join(line for line in failures if f" {name}: " in line))
        for status, names in STRESS_LINE.findall(said)
        for name in STRESS_NAME.findall(names)
    }
