# SPDX-License-Identifier: GPL-2.0
"""Names of Rust functions: what a symbol stands for, and whose code it is."""

import re
import subprocess

HASH = re.compile(r"\[[0-9a-f]{16}\]")
# `::<` of a function, `<` of a type.
ARGUMENTS = re.compile(r"(?:::|(?<=\w))(<)")
PATH_START = re.compile(r"[&*\[(\s]*(?:(?:mut|const|dyn)\s+)*(\w+)::")


def is_rust(symbol: str) -> bool:
    return symbol.startswith("_R")


def demangle(symbols: list[str]) -> dict[str, str]:
    """The path of each symbol, without hashes and generic arguments; C symbols stay as they are."""
    lines = "".join(f"{symbol}\n" for symbol in symbols)
    output = subprocess.run(["c++filt"], input=lines, capture_output=True, text=True, check=True).stdout
    names = (without_arguments(HASH.sub("", name)) for name in output.splitlines())
    return dict(zip(symbols, names, strict=True))


def without_arguments(name: str) -> str:
    """A path without what its parts are instantiated with, and without needless brackets:
    `kernel::alloc::kvec::Vec::push`, `<core::str::CharSearcher as core::str::Searcher>::next_match`."""
    while found := ARGUMENTS.search(name):
        end = found.start(1) + end_of_brackets(name[found.start(1) :])
        name = name[: found.start()] + name[end:]
    if name.startswith("<") and "::" in inside(name) and len(split_cast(inside(name))) == 1:
        return inside(name) + name[end_of_brackets(name) :]
    return name


def owners(function: str) -> set[str]:
    """The crates in a function's own path: of its type and of its trait, not of their arguments.

    Empty for what is implemented on a built-in type.
    """
    if function.startswith("<"):
        return set().union(*(owners(part) for part in split_cast(inside(function))))
    found = PATH_START.match(function)
    if found:
        return {found[1]}
    inner = function.lstrip("&*[( ")
    return owners(inner) if inner.startswith("<") else set()


def inside(text: str) -> str:
    """What is in the angle brackets that `text` begins with."""
    return text[1 : end_of_brackets(text) - 1]


def end_of_brackets(text: str) -> int:
    """Where the angle bracket that `text` begins with is closed; the `>` of `->` closes nothing."""
    depth = 0
    for at, character in enumerate(text):
        if character == "<":
            depth += 1
        elif character == ">" and text[at - 1] != "-":
            depth -= 1
            if depth == 0:
                return at + 1
    return len(text)


def split_cast(text: str) -> list[str]:
    """Type and trait of `Type as Trait`."""
    depth = 0
    for at, character in enumerate(text):
        if character == "<":
            depth += 1
        elif character == ">" and text[at - 1] != "-":
            depth -= 1
        elif depth == 0 and text.startswith(" as ", at):
            return [text[:at], text[at + 4 :]]
    return [text]
