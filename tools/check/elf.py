# SPDX-License-Identifier: GPL-2.0
"""Reads sections, symbols and relocations of a 64-bit little-endian ELF object, such as a module."""

import bisect
import dataclasses
import pathlib
import struct
from collections.abc import Iterator

SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
SYMBOL = struct.Struct("<IBBHQQ")
RELOCATION = struct.Struct("<QQq")

SHT_SYMTAB, SHT_RELA = 2, 4
SHF_EXECINSTR = 4
STT_OBJECT, STT_FUNC, STT_SECTION = 1, 2, 3
# Relocations of x86-64 that are relative to the end of their own four bytes.
RELATIVE = {2, 4}


class NotAnObject(Exception):
    """The file is not an object this module can read."""


@dataclasses.dataclass(frozen=True)
class Section:
    name: str
    type: int
    flags: int
    offset: int
    size: int
    link: int
    info: int

    @property
    def executable(self) -> bool:
        return bool(self.flags & SHF_EXECINSTR)


@dataclasses.dataclass(frozen=True)
class Symbol:
    name: str
    type: int
    section: int
    value: int
    size: int


@dataclasses.dataclass(frozen=True)
class Reference:
    """A place in a section that refers to a symbol."""

    section: Section
    offset: int
    holder: str
    target: str


class Object:
    def __init__(self, path: pathlib.Path):
        self.path = path
        self._data = path.read_bytes()
        if self._data[:6] != b"\x7fELF\x02\x01":
            raise NotAnObject(f"{path} is not a 64-bit little-endian ELF object")
        self.sections = self._read_sections()
        self.symbols = self._read_symbols()
        self._placed = self._sort_by_place()

    def functions(self) -> list[Symbol]:
        """The functions that this object defines."""
        return [symbol for symbol in self.symbols if symbol.type == STT_FUNC and symbol.section]

    def references(self) -> Iterator[Reference]:
        """What its code and its data refer to, by way of relocations.

        Sections that only list places in the code (for tracing, unwinding, patching) are left out.
        """
        for table in self.sections:
            if table.type != SHT_RELA or not is_content(self.sections[table.info]):
                continue
            section = self.sections[table.info]
            for offset, info, addend in RELOCATION.iter_unpack(self.content(table)):
                target = self._target(self.symbols[info >> 32], info & 0xFFFFFFFF, addend)
                yield Reference(section, offset, self._holder(table.info, offset), target)

    def _target(self, symbol: Symbol, kind: int, addend: int) -> str:
        """The symbol a relocation means; compilers like to name a local one as section and offset."""
        if symbol.type != STT_SECTION:
            return symbol.name
        return self._holder(symbol.section, addend + (4 if kind in RELATIVE else 0))

    def _holder(self, section: int, offset: int) -> str:
        """The function or object that contains a place, else the section's name."""
        starts, symbols = self._placed.get(section, ([], []))
        place = bisect.bisect_right(starts, offset) - 1
        if place >= 0 and offset < symbols[place].value + max(symbols[place].size, 1):
            return symbols[place].name
        return self.sections[section].name

    def content(self, section: Section) -> bytes:
        """The bytes of a section."""
        return self._data[section.offset : section.offset + section.size]

    def _read_sections(self) -> list[Section]:
        start = struct.unpack_from("<Q", self._data, 0x28)[0]
        size, count, names = struct.unpack_from("<HHH", self._data, 0x3A)
        headers = [SECTION_HEADER.unpack_from(self._data, start + i * size) for i in range(count)]
        strings = headers[names][4]
        return [
            Section(self._string(strings + name), kind, flags, offset, length, link, info)
            for name, kind, flags, _, offset, length, link, info, _, _ in headers
        ]

    def _read_symbols(self) -> list[Symbol]:
        table = next((section for section in self.sections if section.type == SHT_SYMTAB), None)
        if table is None:
            raise NotAnObject(f"{self.path} has no symbol table")
        strings = self.sections[table.link].offset
        return [
            Symbol(self._string(strings + name), info & 15, section if section < 0xFF00 else 0, value, size)
            for name, info, _, section, value, size in SYMBOL.iter_unpack(self.content(table))
        ]

    def _sort_by_place(self) -> dict[int, tuple[list[int], list[Symbol]]]:
        placed: dict[int, list[Symbol]] = {}
        for symbol in self.symbols:
            if symbol.section and symbol.type in (STT_FUNC, STT_OBJECT):
                placed.setdefault(symbol.section, []).append(symbol)
        for symbols in placed.values():
            symbols.sort(key=lambda symbol: (symbol.value, symbol.size))
        return {section: ([s.value for s in symbols], symbols) for section, symbols in placed.items()}

    def _string(self, offset: int) -> str:
        return self._data[offset : self._data.index(b"\0", offset)].decode()


def is_content(section: Section) -> bool:
    return section.executable or section.name.split(".")[1:2] in (["data"], ["rodata"])
