# SPDX-License-Identifier: GPL-2.0
"""Adds our crates to the rust-project.json that the kernel's `make rust-analyzer` wrote.

The kernel's script finds `foo.rs` where `foo.o` stands in the Kbuild file of the same directory; our
one Kbuild file names crates in other directories. They are taken from what Kbuild recorded when it
built them: each module's list of objects, and the command line of each object.
"""

import argparse
import json
import os
import pathlib
import re
import shlex

RECORDED = re.compile(r"^savedcmd_\S+ := (.*)$", re.MULTILINE)
USAGE = "Run by `make rust-analyzer`, after the modules were built."


class NotBuilt(Exception):
    """Kbuild left no record of something."""


class Command:
    """The command line that compiled a crate."""

    def __init__(self, text: str):
        self.words = shlex.split(text)

    @property
    def name(self) -> str:
        return self.values("--crate-name")[0]

    @property
    def root(self) -> str:
        return next(word for word in reversed(self.words) if word.endswith(".rs"))

    def values(self, option: str) -> list[str]:
        """The values of an option, in either of its forms: `--option value` and `--option=value`."""
        apart = [value for word, value in zip(self.words, self.words[1:]) if word == option]
        return apart + [word.split("=", 1)[1] for word in self.words if word.startswith(f"{option}=")]


def read(path: pathlib.Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        raise NotBuilt(f"{path} is not there: build the modules first") from None


def commands(build: pathlib.Path) -> list[Command]:
    """The command lines of all crates, each once, in the order of the modules that use them."""
    modules = [pathlib.Path(line).stem for line in read(build / "modules.order").split()]
    objects = [line for module in modules for line in read(build / f"{module}.mod").split()]
    found = []
    for name in map(pathlib.Path, dict.fromkeys(objects)):
        record = RECORDED.search(read(build / name.parent / f".{name.name}.cmd"))
        if record and "--crate-name" in record[1]:
            found.append(Command(record[1]))
    return found


def crate(command: Command, index: dict[str, int], kernel: dict) -> dict:
    """A crate as rust-analyzer wants it described."""
    environment = dict(word.split("=", 1) for word in command.values("--env-set"))
    directories = [str(pathlib.Path(command.root).parent), *environment.values()]
    return {
        "display_name": command.name,
        "root_module": command.root,
        "is_workspace_member": True,
        "is_proc_macro": False,
        "edition": command.values("--edition")[0],
        "deps": [{"crate": index[name], "name": name} for name in ["core", *command.values("--extern")]],
        "cfg": [*kernel["cfg"], *command.values("--cfg")],
        "env": {**kernel["env"], **environment, "RUST_MODFILE": command.name},
        "source": {"include_dirs": directories, "exclude_dirs": []},
    }


def complete(project: dict, added: list[Command]) -> None:
    """Adds crates to a project."""
    names = [known["display_name"] for known in project["crates"]] + [command.name for command in added]
    index = {name: number for number, name in enumerate(names)}
    kernel = project["crates"][index["kernel"]]
    project["crates"] += [crate(command, index, kernel) for command in added]


def seen_from_outside(text: str, tree: pathlib.Path) -> str:
    """Paths of the toolchain, which is in the provisioned tree, as an editor outside finds them."""
    return re.sub(r'"(?=/usr["/])', lambda _: f'"{tree}', text)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tools/rust_project.py", description=__doc__, epilog=USAGE)
    parser.add_argument("build", type=pathlib.Path, help="where Kbuild left modules and rust-project.json")
    parser.add_argument("output", type=pathlib.Path, help="the file to write")
    options = parser.parse_args()
    project = json.loads(read(options.build / "rust-project.json"))
    complete(project, commands(options.build))
    text = json.dumps(project, indent=2)
    if os.environ.get("RVSOCK_INSIDE"):
        text = seen_from_outside(text, pathlib.Path(os.environ["RVSOCK_CACHE"]) / "tree")
    options.output.write_text(text + "\n")
    print(f"{options.output.name}: {len(project['crates'])} crates")


if __name__ == "__main__":
    try:
        main()
    except NotBuilt as error:
        raise SystemExit(f"rust-analyzer: {error}") from None
