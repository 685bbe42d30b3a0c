# SPDX-License-Identifier: Apache-2.0
# For sourcing: what the scripts beside it share.
# shellcheck shell=bash

say() { printf '%s: %s\n' "$(hostname)" "$*"; }

die() {
	say "$@" >&2
	exit 1
}

# unit NAME <TEXT: install a systemd service, and start it anew, now and with the machine.
unit() {
	cat >"/etc/systemd/system/$1.service"
	systemctl daemon-reload
	systemctl enable --quiet "$1"
	systemctl restart "$1"
}

# number node3: 3
number() { printf %s "${1#node}"; }

# segment_interface NAME: the interface with the MAC address that the Vagrantfile gives the machine on the segment
segment_interface() {
	local mac file last=100
	[ "$1" = client ] || last=$(number "$1")
	mac=$(printf '02:77:00:00:00:%02x' "$last")
	for file in /sys/class/net/*/address; do
		if [ "$(cat "$file")" = "$mac" ] && [ -e "${file%/*}/device" ]; then
			basename "${file%/*}"
			return
		fi
	done
	die "no interface has the MAC address $mac"
}
