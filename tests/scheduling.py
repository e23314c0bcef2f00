# SPDX-License-Identifier: GPL-2.0
"""Which worker runs which file of tests: those that took longest last time come first, so that all end together."""

import collections
import json
import pathlib
from collections.abc import Mapping

from rig import runs
from xdist.scheduler import LoadFileScheduling

# Of a test whose file was never run: most of those that are many take less.
SECONDS_UNKNOWN = 1.0


def record() -> pathlib.Path:
    return runs.cache() / "log" / "durations.json"


def known() -> dict[str, float]:
    """Seconds that each file took when everything was run last."""
    try:
        return json.loads(record().read_text())
    except (OSError, ValueError):
        return {}


def keep(durations: Mapping[str, float]) -> None:
    """Remembers what a run of everything took."""
    path = record()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(durations, indent=1))


class LongestFirst(collections.OrderedDict):
    """Files with their tests, of which xdist takes the first: that is the longest one that is left."""

    def __init__(self, durations: Mapping[str, float]):
        super().__init__()
        self._durations = durations

    def seconds(self, scope: str) -> float:
        return self._durations.get(scope, SECONDS_UNKNOWN * len(self[scope]))

    def popitem(self, last: bool = True) -> tuple[str, dict[str, bool]]:
        scope = max(self, key=self.seconds)
        return scope, self.pop(scope)


class Scheduling(LoadFileScheduling):
    """One file of tests stays with one worker."""

    def __init__(self, config, log=None):
        super().__init__(config, log)
        self.workqueue = LongestFirst(known())
