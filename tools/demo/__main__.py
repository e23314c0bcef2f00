# SPDX-License-Identifier: GPL-2.0
"""`make demo`; inside the tree: `python3 tools/env enter -- python3 tools/demo`."""

import argparse
import contextlib
import os
import pathlib
import sys
from collections.abc import Iterator

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import rig  # noqa: E402
from demo import files, greeting, loaded, programs, secure_shell, shared_directory, traffic, unloading  # noqa: E402
from demo.screen import Screen  # noqa: E402
from demo.stage import CID_GUEST, CID_HOST, LANGUAGES, SIDES, Stage, Unexpected, install  # noqa: E402
from rig import acceleration, nfs, runs, transports  # noqa: E402

STEPS = (loaded, greeting, secure_shell, files, traffic, shared_directory, unloading)

# An emulator copies `rep movsb` byte by byte, which hides everything else; without these two flags
# the kernel copies with other instructions.
EMULATED_CPU = "max,-erms,-fsrm"

NEXT = """\
What next:
  make shell      a shell in the host VM with a guest running: try things yourself
  make test       everything that proves the modules
  samples/        the programs that ran here, to copy"""


def parse(arguments: list[str]) -> argparse.Namespace:
    description = "Boots two machines, moves data between them, and checks what happens."
    parser = argparse.ArgumentParser(prog="tools/demo", description=description)
    for side, implementation in SIDES.items():
        parser.add_argument(
            f"--{side}",
            choices=transports.IMPLEMENTATIONS,
            default=implementation,
            help=f"transport of the {side}: ours, or the kernel's own (%(default)s)",
        )
    return parser.parse_args(arguments)


@contextlib.contextmanager
def open_stage(screen: Screen, sides: dict[str, str]) -> Iterator[Stage]:
    """Boots the machines and loads the modules."""
    with contextlib.ExitStack() as machines:
        with screen.timed("building the programs"):
            samples = programs.build()
            nfs.program("nfs-vsock")
        with screen.timed("booting the host VM"):
            cpu = "max" if acceleration.hardware() else EMULATED_CPU
            host = machines.enter_context(rig.host(cpu=cpu))
            host.load("host", sides["host"])
        with screen.timed("booting a guest in it, without a network device"):
            guest = machines.enter_context(
                host.guest(cid=CID_GUEST, programs=programs.GUEST, modules=nfs.GUEST_MODULES)
            )
        stage = Stage(screen, host, guest, sides)
        with screen.timed(f"loading {stage.modules('guest')[-1]} in the guest"):
            guest.load("guest", sides["guest"])
        install(stage, samples)
        yield stage


def introduce(screen: Screen, sides: dict[str, str]) -> None:
    title = f"AF_VSOCK transports in Rust on Debian's kernel {runs.release()}"
    screen.say(screen.styled("heading", title) + "\n")
    for side, cid in (("guest", CID_GUEST), ("host", CID_HOST)):
        module = getattr(transports.ROLES[side], sides[side])[-1]
        screen.note(f"{side:<6} CID {cid}   {module} ({LANGUAGES[sides[side]]})")
    if not acceleration.hardware():
        screen.note("No usable KVM here: both are emulated, and rates far below those of hardware.")
    screen.say()


def perform(screen: Screen, sides: dict[str, str]) -> None:
    introduce(screen, sides)
    with open_stage(screen, sides) as stage:
        for step in STEPS:
            with screen.step(step.TITLE):
                step.show(stage)
    screen.summary()
    screen.say(NEXT)


def main(arguments: list[str]) -> int:
    screen = Screen()
    options = parse(arguments)
    try:
        perform(screen, {side: getattr(options, side) for side in SIDES})
    except Unexpected as claim:
        screen.failed(f"expected, and not so: {claim}")
        return 1
    except rig.RigError as error:
        screen.failed(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has left. At exit Python would try once more to write what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
