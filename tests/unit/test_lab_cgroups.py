# SPDX-License-Identifier: Apache-2.0
"""Where control groups are."""

from pathlib import Path

import pytest

from lb.errors import LabError
from lb.lab import cgroups


@pytest.mark.parametrize(
    ("mounts", "where"),
    [
        ("cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n", "/sys/fs/cgroup"),
        (
            "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\nnone /sys/fs/cgroup/unified cgroup2 rw 0 0\n",
            "/sys/fs/cgroup/unified",
        ),
        ("none /mnt/with\\040space cgroup2 rw 0 0\n", "/mnt/with space"),
    ],
)
def test_the_mount_is_found_wherever_it_is(mounts: str, where: str) -> None:
    assert cgroups.mount_point(mounts) == Path(where)


def test_a_machine_without_cgroup_v2_is_told_so() -> None:
    with pytest.raises(LabError, match="cgroup v2 is not mounted"):
        cgroups.mount_point("cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n")
