# SPDX-License-Identifier: GPL-2.0
"""`make fuzz`: fuzzes the protocol crate with libFuzzer. Runs inside the tree."""

import argparse
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
BUILD = CHECKOUT / "build" / "fuzz"
RUNTIME = BUILD / "libFuzzer.a"

DESCRIPTION = """\
Fuzzes functions of rust/proto/tests/fuzz, each of which compares the protocol crate with a second
opinion. What was learnt stays in build/fuzz/corpus; an input that fails is kept in build/fuzz/failed.
"""

# What cargo-fuzz passes: edges are counted, and the operands of comparisons are looked at. No
# address sanitizer: Debian's rustc comes without its runtime, and the crate forbids unsafe code.
# Panics, overflows and differences are what there is to find.
INSTRUMENTATION = [
    "-Cpasses=sancov-module",
    *(
        f"-Cllvm-args=-sanitizer-coverage-{option}"
        for option in ("level=4", "inline-8bit-counters", "pc-table", "trace-compares")
    ),
    "-Ccodegen-units=1",
    "--cfg=fuzzing",
]


class Trouble(Exception):
    """Something that the user has to know."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a target did; `failed` is the input that it failed on."""

    executions: int
    edges: int
    features: int
    corpus: int
    failed: pathlib.Path | None = None


def names() -> list[str]:
    return sorted(path.stem for path in (CHECKOUT / "fuzz" / "fuzz_targets").glob("*.rs"))


def run(command: list[str], directory: pathlib.Path = CHECKOUT, **variables: str) -> str:
    result = subprocess.run(
        command, cwd=directory, env=os.environ | variables, capture_output=True, text=True, errors="replace"
    )
    if result.returncode:
        raise Trouble(f"{' '.join(command)}:\n{result.stdout}{result.stderr}")
    return result.stdout


def compiler() -> tuple[str, str]:
    """The compiler's target and major version of LLVM."""
    version = run(["rustc", "-vV"])
    host = re.search(r"^host: (\S+)$", version, re.MULTILINE)
    llvm = re.search(r"^LLVM version: (\d+)", version, re.MULTILINE)
    if not host or not llvm:
        raise Trouble(f"a compiler that does not say for what it compiles:\n{version}")
    return host[1], llvm[1]


def fetch_runtime(host: str, llvm: str) -> None:
    """Takes libFuzzer from Debian's package: building it needs a C++ compiler, which the tree has not."""
    if RUNTIME.exists():
        return
    print("fetching libFuzzer", flush=True)
    unpacked = BUILD / "package"
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir(parents=True)
    run(["apt-get", "download", f"libclang-rt-{llvm}-dev"], unpacked)
    (package,) = unpacked.glob("*.deb")
    run(["dpkg-deb", "-x", str(package), str(unpacked)])
    library = f"libclang_rt.fuzzer-{host.split('-')[0]}.a"
    found = next(unpacked.rglob(library), None)
    if found is None:
        raise Trouble(f"{package.name} has no {library}")
    # At once, or an interruption would leave a part of it for the next run.
    partial = RUNTIME.with_suffix(".partial")
    shutil.copyfile(found, partial)
    partial.rename(RUNTIME)
    shutil.rmtree(unpacked)


def build(host: str) -> pathlib.Path:
    """Builds all targets; where they are."""
    print("building", flush=True)
    command = ["cargo", "build", "--release", "--locked", "--manifest-path", "fuzz/Cargo.toml"]
    run(
        [*command, "--target", host, "--target-dir", str(BUILD / "target")],
        CUSTOM_LIBFUZZER_PATH=str(RUNTIME),
        RUSTFLAGS=" ".join(INSTRUMENTATION),
    )
    return BUILD / "target" / host / "release"


def fuzz(programs: pathlib.Path, name: str, seconds: int) -> Result:
    corpus, failed = BUILD / "corpus" / name, BUILD / "failed" / name
    for directory in (corpus, failed):
        directory.mkdir(parents=True, exist_ok=True)
    before = set(failed.iterdir())
    options = [f"-max_total_time={seconds}", "-print_final_stats=1", "-timeout=10", "-max_len=512"]
    process = subprocess.run(
        [str(programs / name), *options, f"-artifact_prefix={failed}/", str(corpus)],
        env=os.environ | {"RVSOCK_SEEDS": str(corpus)},
        capture_output=True,
        text=True,
        errors="replace",
    )
    result = parse(process.stderr)
    if process.returncode == 0:
        return result
    (BUILD / f"{name}.log").write_text(process.stderr)
    print("\n".join(process.stderr.splitlines()[-40:]))
    new = sorted(set(failed.iterdir()) - before)
    return dataclasses.replace(result, failed=new[0] if new else BUILD / f"{name}.log")


def parse(output: str) -> Result:
    """What libFuzzer says at its end."""
    found = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)/", output)
    edges, features, corpus = map(int, found[-1]) if found else (0, 0, 0)
    executed = re.search(r"^stat::number_of_executed_units:\s*(\d+)", output, re.MULTILINE)
    return Result(int(executed[1]) if executed else 0, edges, features, corpus)


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make fuzz", description=DESCRIPTION)
    parser.add_argument("--target", choices=names(), help="this function only")
    parser.add_argument("--seconds", type=int, default=60, help="for each function (default: 60)")
    options = parser.parse_args(arguments)
    if "RVSOCK_INSIDE" not in os.environ:
        parser.error("this runs inside the provisioned tree: use `make fuzz`")
    return options


def main(arguments: list[str]) -> int:
    options = parse_arguments(arguments)
    host, llvm = compiler()
    BUILD.mkdir(parents=True, exist_ok=True)
    fetch_runtime(host, llvm)
    programs = build(host)
    chosen = [options.target] if options.target else names()
    failures = []
    print(f"{'target':<12} {'executions':>12} {'edges':>6} {'features':>9} {'corpus':>7}", flush=True)
    for name in chosen:
        result = fuzz(programs, name, options.seconds)
        line = f"{name:<12} {result.executions:>12} {result.edges:>6} {result.features:>9} {result.corpus:>7}"
        print(f"{line}  FAILED on {result.failed}" if result.failed else line, flush=True)
        failures += [name] if result.failed else []
    print(f"fuzz: {len(chosen) - len(failures)} passed, {len(failures)} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Trouble as error:
        print(f"fuzz: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nfuzz: interrupted")
        sys.exit(130)
