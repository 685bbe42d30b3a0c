#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Make this machine what it is in the lab: provision.sh node1|node2|…|client NODES kubernetes|standalone
# As root, with the working tree at /vagrant. Again: brings what has changed in the tree into service.
set -euo pipefail
here=$(dirname "$(realpath "$0")")

name=${1:?which machine} nodes=${2:?how many nodes} lab=${3:?kubernetes or standalone}
# shellcheck source=vagrant/common.sh
. "$here/common.sh"

packages() {
	local package missing=()
	for package; do
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	say "installing ${missing[*]}"
	apt-get update -q
	DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" </dev/null
}

# The addresses of the lab come back with every start of the machine.
unit lab-network <<END
[Unit]
Description=The lab's network
Before=lbctl.service k3s.service k3s-agent.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=$here/network.sh $name $nodes $lab
[Install]
WantedBy=multi-user.target
END

if [ "$name" = client ]; then
	packages curl iproute2 python3
	# What examples/external-service.yaml leads to.
	unit lab-outside <<-END
		[Unit]
		Description=A server outside of the cluster
		After=lab-network.service
		[Service]
		ExecStart=/usr/bin/python3 -I -S /vagrant/lb/lab/pod.py outside 192.168.77.200,fd00:77::200 tcp:80:http udp:9000:echo --
		Restart=always
		[Install]
		WantedBy=multi-user.target
	END
	say "the client is there"
	exit
fi

packages curl iproute2 linux-libc-dev python3-bpfcc python3-venv
if [ "$lab" = standalone ]; then
	# Debian would start them as they come.
	systemctl mask --now --quiet named nginx
	packages bind9 nginx
fi
"$here/$lab.sh" "$name" "$nodes"
"$here/agent.sh" "$name"
[ "$lab" != standalone ] || "$here/servers.sh" "$name"
