#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# lbctl from the working tree, as docs/operations.md installs it, as a service: agent.sh NODE
# Its settings are in /etc/lbctl/lbctl.yaml already.
set -euo pipefail
# shellcheck source=vagrant/common.sh
. "$(dirname "$(realpath "$0")")/common.sh"

venv=/opt/lbctl
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_QUIET=1

say "installing lbctl into $venv"
sources=$(mktemp -d) # building leaves files behind
trap 'rm -rf "$sources"' EXIT
tar -C /vagrant -c LICENSE LICENSES MANIFEST.in README.md bpf deploy examples examples-ipv6 lb pyproject.toml setup.py |
	tar -C "$sources" -x
[ -x $venv/bin/pip ] || /usr/bin/python3 -m venv --system-site-packages $venv
$venv/bin/pip install --require-hashes -r /vagrant/requirements/build.txt -r /vagrant/requirements/run.txt
$venv/bin/pip install --no-deps --no-build-isolation "$sources" # a directory is installed anew, whatever its version
$venv/bin/lbctl doctor

mkdir -p /etc/systemd/system/lbctl.service.d
cp /vagrant/deploy/systemd/announce.conf /etc/systemd/system/lbctl.service.d # needed where lbctl.yaml says announce: arp
unit lbctl <"/vagrant/deploy/systemd/lbctl.service"
say "waiting for the agent; its first start compiles the programs"
for _ in $(seq 300); do
	if curl -sf -m 3 -o /dev/null http://127.0.0.1:10256/healthz; then
		$venv/bin/lbctl status
		exit
	fi
	sleep 1
done
journalctl -u lbctl --no-pager -n 50 >&2
die "the agent did not come into service"
