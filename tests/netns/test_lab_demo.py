# SPDX-License-Identifier: Apache-2.0
"""What `make lab` shows, on a lab with agents."""

import io

from lb.cli import main
from lb.lab.demo import ROWS
from lb.lab.lab import Lab


def test_the_show_runs_and_runs_again(lab: Lab) -> None:
    for _ in range(2):
        out, err = io.StringIO(), io.StringIO()
        assert main(["lab", "demo", "--id", lab.spec.id], out=out, err=err) == 0, err.getvalue()
        text = out.getvalue()
        for row in ROWS:
            assert f"{row.title}:\n" in text
        assert f"$ lbctl maps dump --instance {lab.spec.id}.node1 vips" in text
        assert "10.66.13.240:80" in text
        assert "-A -t 10.66.4.173:80 -s mh" in text
        assert f"lbctl lab down --id {lab.spec.id}" in text
