# SPDX-License-Identifier: GPL-2.0
"""tools/env: what it says when something is missing, and what an interruption may leave behind."""

import errno
import functools
import http.server
import importlib.util
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.unit

ENV = pathlib.Path(__file__).resolve().parents[2] / "tools/env"
MODULES = ("cache", "console", "debian", "enter", "flavour", "kernel")


def load(name: str, path: pathlib.Path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", autouse=True)
def env() -> Iterator:
    """tools/env's main module. Its neighbours have plain names: they are taken back afterwards."""
    sys.path.insert(0, str(ENV))
    kept = {name: sys.modules.pop(name, None) for name in MODULES}
    yield load("rvsock_env", ENV / "__main__.py")
    sys.path.remove(str(ENV))
    sys.modules.update({name: module for name, module in kept.items() if module})


COVERED = "/covered"


@pytest.fixture(autouse=True)
def root(env, tmp_path, monkeypatch) -> pathlib.Path:
    """An empty cache directory, and none of the variables that a developer may have set."""
    # Tests have theirs below /tmp, where a real one is refused.
    monkeypatch.setattr(sys.modules[env.Cache.__module__], "COVERED", (COVERED,))
    for name in ("KERNEL", "RVSOCK_KERNEL", "RVSOCK_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RVSOCK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return tmp_path / "cache"


@pytest.fixture
def cache(env, root):
    made = env.Cache()
    made.create()
    return made


class FakeTree:
    """A Debian tree whose programs print what the test says."""

    def __init__(self, path: pathlib.Path, outputs: dict[str, str]):
        self.path = path
        self.outputs = outputs
        self.commands: list[list[str]] = []

    def output(self, command: list[str]) -> str:
        return self.outputs.get(" ".join(command), "")

    def run(self, log: pathlib.Path, command: list[str]) -> None:
        self.commands.append(command)


def fails(env, arguments: list[str], capsys) -> str:
    """The message a command ends with; it has to be one paragraph, and the status not 0."""
    status = env.main(arguments)
    message = capsys.readouterr().err
    assert status == 1
    assert message.startswith("rvsock: ") and "Traceback" not in message
    return message


# What the machine lacks.


def test_without_root_it_says_how_to_get_it(env, monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "sudo" in fails(env, ["setup"], capsys)


def test_a_cache_that_the_virtual_machines_cannot_see_is_refused(env, monkeypatch, capsys):
    monkeypatch.setenv("RVSOCK_CACHE", f"{COVERED}/cache")
    assert f"{COVERED}/cache cannot hold the cache" in fails(env, ["setup"], capsys)


def test_a_full_disk_is_named_with_what_is_needed(env, monkeypatch, capsys):
    usage = type("usage", (), {"free": 3e9})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    message = fails(env, ["setup"], capsys)
    assert "3.0 GB free, 12 GB are needed" in message and "RVSOCK_CACHE" in message


def test_a_disk_that_fills_up_later_is_no_traceback(env, monkeypatch, capsys):
    def full(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "apt.log")

    monkeypatch.setattr(env.Cache, "create", full)
    message = fails(env, ["setup"], capsys)
    assert "No space left on device" in message and "RVSOCK_CACHE" in message


def test_a_silent_mirror_is_named_at_once(env, monkeypatch, capsys):
    monkeypatch.setenv("RVSOCK_MIRROR", "http://127.0.0.1:9/debian")
    started = time.monotonic()
    message = fails(env, ["setup"], capsys)
    assert "http://127.0.0.1:9/debian does not answer" in message and "RVSOCK_MIRROR" in message
    assert time.monotonic() - started < 10


def test_a_server_without_the_suite_is_no_mirror(env):
    handler = http.server.BaseHTTPRequestHandler
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        with pytest.raises(env.CommandError, match="is no mirror of Debian trixie"):
            env.debian.check_mirror(f"http://127.0.0.1:{server.server_port}/debian")


def test_a_mirror_that_is_no_address_is_an_error_of_its_own(env):
    with pytest.raises(env.CommandError, match="mirror deb.debian.org does not answer"):
        env.debian.check_mirror("deb.debian.org")


def test_without_debootstrap_and_apt_it_asks_for_debootstrap(env, cache, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(env.CommandError, match="debootstrap is needed"):
        env.debian.install_debootstrap(cache)


def test_debootstrap_is_installed_where_apt_is(env, cache, monkeypatch):
    ran = []
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/apt-get" if name == "apt-get" else None)
    monkeypatch.setattr(cache, "run", lambda log, command: ran.append(command))
    env.debian.install_debootstrap(cache)
    assert ran[-1][-1] == "debootstrap"


def test_a_failed_command_shows_the_end_of_its_log(env, cache):
    with pytest.raises(env.CommandError, match="`sh` failed(?s:.*)no space left") as caught:
        cache.run(cache.logs / "x.log", ["sh", "-c", "echo no space left; exit 3"])
    assert str(cache.logs / "x.log") in str(caught.value)


def test_the_error_of_a_parallel_make_is_shown_not_what_came_after(env):
    cause = ["lz4: not found", "make[3]: *** Error 127"]
    before = [f"  CC  {at}.o" for at in range(20)]
    after = [f"  LD  {at}.ko" for at in range(50)]
    shown = importlib.import_module("cache").excerpt([*before, *cause, *after, "make: *** Error 2"])
    assert shown[-2:] == cause and before[-1] in shown


def test_an_unknown_kernel_is_answered_with_those_there_are(env, capsys):
    message = fails(env, ["setup", "--kernel", "debgu"], capsys)
    assert "no kernel 'debgu'" in message and "stock, debug, kasan, uml, uml-debug" in message


def test_the_kernel_is_chosen_by_option_or_variable(env, monkeypatch):
    assert env.parse(["setup"]).kernel == "stock"
    monkeypatch.setenv("KERNEL", "debug")
    assert env.parse(["enter", "--", "make", "--kernel"]).kernel == "debug"
    assert env.parse(["enter", "--kernel", "uml", "--", "make"]).kernel == "uml"


# Which kernel.


def packages(*releases: str) -> dict[str, str]:
    """What apt says on a mirror with these releases, each complete."""
    parts = ("binary", "modules", "headers")
    names = [f"linux-{part}-{release}" for release in releases for part in parts]
    outputs = {}
    for release in releases:
        source = "linux-source-" + ".".join(release.split(".")[:2])
        names.append(source)
        line = f"{source} | {release.split('+')[0]}-1~bpo13+1 | http://mirror trixie-backports/main\n"
        key = f"apt-cache madison {source}"
        outputs[key] = outputs.get(key, "") + line
    return outputs | {"apt-cache pkgnames linux-": "\n".join(names)}


def test_the_newest_complete_kernel_of_the_series_is_taken(env, tmp_path):
    upstream = ("7.2.9", "7.2.12", "7.3.1", "7.20.1")
    tree = FakeTree(tmp_path, packages(*(f"{version}+deb13-amd64" for version in upstream)))
    found = env.kernel.resolve(tree)
    assert (found.release, found.source_version) == ("7.2.12+deb13-amd64", "7.2.12-1~bpo13+1")


def test_a_kernel_whose_headers_are_gone_is_not_taken(env, tmp_path):
    outputs = packages("7.2.9+deb13-amd64", "7.2.12+deb13-amd64")
    names = outputs["apt-cache pkgnames linux-"].replace("linux-headers-7.2.12+deb13-amd64", "")
    tree = FakeTree(tmp_path, outputs | {"apt-cache pkgnames linux-": names})
    assert env.kernel.resolve(tree).release == "7.2.9+deb13-amd64"


def test_a_release_can_be_asked_for(env, tmp_path, monkeypatch):
    monkeypatch.setenv("RVSOCK_KERNEL", "7.2.9+deb13-amd64")
    tree = FakeTree(tmp_path, packages("7.2.9+deb13-amd64", "7.2.12+deb13-amd64"))
    assert env.kernel.resolve(tree).release == "7.2.9+deb13-amd64"


def test_a_vanished_series_is_answered_with_what_the_mirror_has(env, tmp_path):
    tree = FakeTree(tmp_path, packages("7.4.2+deb13-amd64", "7.4.10+deb13-amd64"))
    with pytest.raises(env.CommandError, match="no 7.2 kernel") as caught:
        env.kernel.resolve(tree)
    assert "(it has: 7.4.10+deb13-amd64)" in str(caught.value) and "RVSOCK_KERNEL" in str(caught.value)


CONFIG = """\
CONFIG_RUST=y
CONFIG_RUSTC_VERSION_TEXT="rustc 1.85.1 (4eb161250 2025-03-15)"
CONFIG_BINDGEN_VERSION_TEXT="bindgen 0.71.1"
CONFIG_CC_VERSION_TEXT="gcc-14 (Debian 14.2.0-19) 14.2.0"
"""
TOOLS = {
    "rustc --version": "rustc 1.85.1 (4eb161250 2025-03-15)\n",
    "bindgen --version workaround-for-0.69.0": "bindgen 0.71.1\n",
    "gcc-14 --version": "gcc-14 (Debian 14.2.0-19) 14.2.0\nCopyright\n",
}


@pytest.fixture
def config(tmp_path) -> pathlib.Path:
    path = tmp_path / "config"
    path.write_text(CONFIG)
    return path


def test_a_kernel_without_rust_is_refused(env, config):
    env.kernel.check_rust(config)
    config.write_text("# CONFIG_RUST is not set\n")
    with pytest.raises(env.CommandError, match="without CONFIG_RUST"):
        env.kernel.check_rust(config)


def test_the_toolchain_of_the_kernel_passes_in_silence(env, config, capsys):
    env.kernel.check_toolchain(FakeTree(config.parent, TOOLS), config)
    assert capsys.readouterr().out == ""


def test_another_rustc_is_refused(env, config):
    tools = TOOLS | {"rustc --version": "rustc 1.85.1 (4eb161250 2025-03-15) (from rustup)\n"}
    with pytest.raises(env.CommandError, match="from rustup.*would not load"):
        env.kernel.check_toolchain(FakeTree(config.parent, tools), config)


def test_another_c_compiler_is_a_warning(env, config, capsys):
    env.kernel.check_toolchain(FakeTree(config.parent, TOOLS | {"gcc-14 --version": "gcc 15\n"}), config)
    assert "warning: gcc-14" in capsys.readouterr().out


# What is on record.


@pytest.fixture
def provisioned(env, cache):
    """An Environment whose stock kernel is complete."""
    environment = env.Environment(cache)
    found = env.kernel.Kernel("7.2.12+deb13-amd64", "linux-source-7.2", "7.2.12-1~bpo13+1")
    build = env.kernel.StockTree(cache, environment.tree, found)
    for path in (build.path / env.kernel.READY, build.image):
        path.parent.mkdir(parents=True)
        path.write_text("7.2.12-1~bpo13+1")
    cache.record("kernel", {"kernel": vars(found)})
    cache.record("packages", env.debian.TOOLCHAIN + env.debian.MACHINES)
    return environment


def test_what_is_complete_is_used_without_a_word(provisioned, capsys):
    assert provisioned.set_up(None).release == "7.2.12+deb13-amd64"
    assert capsys.readouterr().out == ""


def test_a_silent_mirror_leaves_the_known_good_kernel_in_use(provisioned, monkeypatch, capsys):
    monkeypatch.setenv("RVSOCK_MIRROR", "http://127.0.0.1:9/debian")
    assert provisioned.set_up(None, update=True).release == "7.2.12+deb13-amd64"
    assert "keeping the kernel that is there: 7.2.12+deb13-amd64" in capsys.readouterr().out
    log = (provisioned.cache.logs / "setup.log").read_text()
    assert "does not answer" in log and "keeping the kernel" in log


def test_a_kernel_that_is_not_the_wanted_one_is_not_used(env, provisioned, monkeypatch):
    monkeypatch.setenv("RVSOCK_KERNEL", "7.3")
    monkeypatch.setenv("RVSOCK_MIRROR", "http://127.0.0.1:9/debian")
    with pytest.raises(env.CommandError, match="does not answer"):
        provisioned.set_up(None)


@pytest.mark.parametrize("missing", ["marker", "image", "record"])
def test_an_incomplete_kernel_counts_as_none(env, provisioned, missing):
    build = provisioned.stock()
    paths = {"marker": build.path / env.kernel.READY, "image": build.image}
    paths["record"] = provisioned.cache.root / "kernel.json"
    paths[missing].unlink()
    assert provisioned.stock() is None


def test_a_new_package_in_the_list_is_noticed(env, provisioned, monkeypatch):
    assert provisioned.packages_current()
    monkeypatch.setattr(env.debian, "MACHINES", [*env.debian.MACHINES, "gdb"])
    assert not provisioned.packages_current()


def test_half_a_record_is_none(cache):
    (cache.root / "kernel.json").write_text('{"kernel": {"rel')
    assert cache.recorded("kernel") is None


def test_a_tree_that_is_used_is_not_removed(env, cache, capsys):
    with cache.in_use():
        assert "in use by another run" in fails(env, ["clean"], capsys)
    assert env.main(["clean"]) == 0 and not cache.root.exists()


def test_a_second_run_waits_for_the_first(cache, capsys):
    done = threading.Event()

    def second() -> None:
        with cache.lock("tree"):
            done.set()

    with cache.lock("tree"):
        thread = threading.Thread(target=second)
        thread.start()
        assert not done.wait(0.2)
    thread.join(timeout=10)
    assert done.is_set() and "waiting for another run" in capsys.readouterr().out


# Kernels built here.


@pytest.mark.parametrize("name", ["debug", "kasan", "uml", "uml-debug"])
def test_a_flavour_has_a_release_and_variables_of_its_own(env, provisioned, name):
    stock = provisioned.stock()
    build = env.flavour.FlavourTree(provisioned.cache, provisioned.tree, stock.kernel, env.flavour.find(name))
    variables = build.variables()
    assert variables["RVSOCK_RELEASE"] == f"7.2.12+deb13-{name}"
    assert variables["KDIR"] != stock.variables()["KDIR"]
    user_mode = name.startswith("uml")
    assert variables["KARCH"] == ("um" if user_mode else "x86")
    assert variables["RVSOCK_IMAGE"].endswith("/linux" if user_mode else "/vmlinuz")
    assert ("KRUSTFLAGS" in variables) == user_mode
    assert not build.ready


def test_the_fragments_do_not_contradict_each_other(env):
    for flavour in env.flavour.FLAVOURS.values():
        seen = {}
        for name in flavour.fragments:
            fragment = (env.flavour.CONFIGS / f"{name}.config").read_text()
            for option, value in env.flavour.options(fragment).items():
                assert seen.setdefault(option, value) == value, f"{flavour.name}: {option}"


def test_an_option_that_did_not_take_is_named(env):
    asked = "CONFIG_A=y\nCONFIG_B=m\nCONFIG_C=n\n# a comment\n"
    env.flavour.check_options(asked, "CONFIG_A=y\nCONFIG_B=m\n")
    env.flavour.check_options(asked, "CONFIG_A=y\nCONFIG_B=m\n# CONFIG_C is not set\n")
    with pytest.raises(env.CommandError, match="CONFIG_B=m is y, CONFIG_C=n is y"):
        env.flavour.check_options(asked, "CONFIG_A=y\nCONFIG_B=y\nCONFIG_C=y\n")


def test_a_changed_configuration_asks_for_another_build(env, provisioned, monkeypatch, tmp_path):
    kernel = provisioned.stock().kernel
    build = env.flavour.FlavourTree(provisioned.cache, provisioned.tree, kernel, env.flavour.find("uml"))
    for path in (build.path / env.kernel.READY, build.image):
        path.parent.mkdir(parents=True)
    build.image.touch()
    (build.path / env.kernel.READY).write_text(build._fingerprint)
    assert build.ready
    for name in ("base", "uml"):
        (tmp_path / f"{name}.config").write_text("CONFIG_NEW=y\n")
    monkeypatch.setattr(env.flavour, "CONFIGS", tmp_path)
    assert not build.ready


def test_sources_of_another_version_are_refused(env, provisioned):
    stock = provisioned.stock()
    stock.tree = FakeTree(stock.tree.path, {})
    stock._makefile = lambda: "VERSION = 7\nPATCHLEVEL = 2\nSUBLEVEL = 14\nEXTRAVERSION =\n"
    with pytest.raises(env.CommandError, match="is version 7.2.14, the kernel 7.2.12"):
        stock.unpack()


def test_progress_counts_what_an_interrupted_build_did(env, tmp_path):
    log = tmp_path / "build.log"
    log.write_text("$ make\n" + "  CC      a.o\n" * 50)
    progress = env.flavour.Progress(log, 200)
    assert progress() == "25%"
    progress.started -= 50
    log.write_text("  CC      a.o\n" * 100)
    # 50 files in these 50 s, 100 to go.
    assert progress() == "50%, about 2 min left"
    log.write_text("  CC      a.o\n" * 300 + "  HDRINST a.h\n")
    assert progress() == "99%"


# Interruption.


def test_what_it_started_ends_with_it_however_it_ends(env):
    """Nobody is left in the tree when the next run begins, not even after kill -9.

    The command drops its death signal, as apt does when it changes its user.
    """
    marker = f"600.{time.monotonic_ns()}"
    sleeper = ["setpriv", "--pdeathsig", "clear", "sh", "-c", f"sleep {marker} & sleep {marker}"]
    command = env.enter.contained(sleeper)
    script = f"import subprocess; subprocess.run({command!r})"
    parent = subprocess.Popen([sys.executable, "-c", script])
    wait_for(lambda: processes(marker))
    parent.kill()
    parent.wait()
    wait_for(lambda: not processes(marker))


def test_ctrl_c_reaches_the_command_and_its_status_comes_back(env):
    script = "trap 'sleep 0.2; exit 42' INT; echo up; while :; do sleep 0.1; done"
    command = env.enter.contained(["sh", "-c", script])
    # Where these tests run in the background, a shell has made them ignore the signal, and a shell
    # cannot trap what is ignored.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, preexec_fn=heed)
    assert process.stdout.readline() == b"up\n"
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=30) == 42


def processes(marker: str) -> list[str]:
    """The `sleep`s of this test."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if arguments[:2] == [b"sleep", marker.encode()]:
            found.append(entry.parent.name)
    return found


def wait_for(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
