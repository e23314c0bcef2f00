# SPDX-License-Identifier: GPL-2.0
"""What a test is told of the project's own device (vhost_user.py)."""

import pytest
import rig
import vhost_user


class Command:
    """A device that fails every task."""

    stdout = "task 1 failed: hello: not within 30s\nend of task 1\n"

    def write(self, data):
        pass

    def wait_for(self, text, timeout):
        assert text in self.stdout


class Guest:
    def __init__(self, error=None):
        self.error = error

    def run(self, command):
        if self.error:
            raise self.error


def test_a_guest_that_hangs_is_not_taken_for_a_driver_that_does():
    device = vhost_user.Device(Command())
    device.guest = Guest(rig.EmulationTrap("guest5: hangs"))
    with pytest.raises(rig.EmulationTrap):
        device.run("attack", 1)


@pytest.mark.parametrize("guest", [None, Guest()])
def test_a_task_that_fails_is_told_in_the_device_s_words(guest):
    device = vhost_user.Device(Command())
    device.guest = guest
    with pytest.raises(AssertionError, match="hello: not within 30s"):
        device.run("attack", 1)
