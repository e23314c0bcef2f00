# SPDX-License-Identifier: GPL-2.0
"""What a part of the check found."""

import dataclasses


@dataclasses.dataclass
class Report:
    """Problems make the check fail; notes are shown whatever the result."""

    problems: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    summary: str = ""
