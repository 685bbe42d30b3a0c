# SPDX-License-Identifier: Apache-2.0
"""What `make lab` shows, on a lab with agents."""

import io
import re
import shlex

from lb.cli import main
from lb.cli.grammar.lab import EXAMPLES_IN_IPV6
from lb.lab.addressing import Family
from lb.lab.demo import ROWS, rows
from lb.lab.lab import Lab
from tests.netns.conftest import MakeLab


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


def test_it_runs_in_ipv6_with_the_examples_of_that_family(make_lab: MakeLab) -> None:
    """Every Service answers, nothing is an error, and what is proposed has no address of IPv4."""
    lab = make_lab(EXAMPLES_IN_IPV6, family=Family.IPV6, nodes=2, dns=True)
    assert lab.status()["errors"] == []
    out, err = io.StringIO(), io.StringIO()
    assert main(["lab", "demo", "--id", lab.spec.id], out=out, err=err) == 0, err.getvalue()
    text = out.getvalue()
    for row in rows(lab.spec):
        assert f"{row.title}:\n" in text
    assert re.findall(r"\d+\.\d+\.\d+\.\d+", text) == []
    proposed = re.findall(r"lab exec --id \w+ (\S+) -- (.*)", text)
    assert len(proposed) == 3
    for place, command in proposed:
        done = lab.run(place, shlex.split(command))
        assert "You've hit kubia-" in done.stdout, command
