#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Run a command on a machine of the lab, or in the network of a pod: on.sh client|node1|…|POD -- COMMAND [ARGUMENT…]
# Machines are reached as `vagrant ssh-config` says, or the file that LAB_SSH_CONFIG names.
set -euo pipefail

place=$1
[ "$2" = -- ] || { echo "usage: ${0##*/} PLACE -- COMMAND [ARGUMENT…]" >&2 && exit 2; }
shift 2

config=${LAB_SSH_CONFIG:-}
if [ -z "$config" ]; then
	cd "$(dirname "$(realpath "$0")")/.."
	config=.vagrant/ssh-config
	# Machines come and go, and their ports with them.
	if [ -z "$(find "$config" -newer .vagrant/machines 2>/dev/null)" ]; then
		vagrant ssh-config >"$config"
	fi
fi

on() {
	local machine=$1
	shift
	ssh -n -F "$config" "$machine" -- "$(printf '%q ' sudo "$@")"
}

case $place in
client | node[0-9]*)
	on "$place" "$@"
	;;
*)
	mapfile -t nodes < <(awk '$1 == "Host" && $2 ~ /^node/ {print $2}' "$config")
	for node in "${nodes[@]}"; do
		if pid=$(on "$node" pgrep -o -f "^[^ ]*python[^ ]* .*pod.py $place "); then
			own=()
			! on "$node" test -d "/etc/netns/$place" || own=(--mount) # with its resolv.conf
			on "$node" nsenter --net "${own[@]}" --target "$pid" "$@"
			exit
		fi
	done
	echo "no node has a pod $place" >&2
	exit 1
	;;
esac
