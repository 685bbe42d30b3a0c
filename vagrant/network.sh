#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Addresses and routes of one machine on the lab's segment, those of lb/lab/addressing.py:
#   network.sh node1|node2|…|client NODES kubernetes|standalone
set -euo pipefail
# shellcheck source=vagrant/common.sh
. "$(dirname "$(realpath "$0")")/common.sh"

name=$1 nodes=$2 lab=$3
interface=$(segment_interface "$name")

settings() {
	local each
	for each; do
		sysctl -q -w "net.$each"
	done
}

# address LAST-DIGITS [MORE]: of both families
address() {
	ip address replace "192.168.77.$1/24" dev "$interface"
	ip -6 address replace "fd00:77::$1/64" dev "$interface" nodad "${@:2}"
}

settings "ipv6.conf.$interface.accept_ra=0" "ipv6.conf.$interface.disable_ipv6=0"
for which in all default "$interface"; do
	settings "ipv4.conf.$which.accept_redirects=0" "ipv6.conf.$which.accept_redirects=0"
done
ip link set "$interface" up

if [ "$name" = client ]; then
	# Ten clients, and a server; what does not ask for another address has the first.
	address 100
	for last in 101 102 103 104 105 106 107 108 109 200; do
		address "$last" preferred_lft 0
	done
	# All that it knows of the cluster is that node1 is the way there.
	for network in 10.66.0.0/16 10.244.0.0/16 198.51.100.0/24; do
		ip route replace "$network" via 192.168.77.11
	done
	for network in fd00:66::/112 fd00:244::/48; do
		ip -6 route replace "$network" via fd00:77::11
	done
	# Load-balancer addresses: without Kubernetes the nodes announce them, so the client asks the segment who has one.
	way4="via 192.168.77.11" way6="via fd00:77::11"
	[ "$lab" != standalone ] || way4="" way6=""
	# shellcheck disable=SC2086  # two words or none
	ip route replace 203.0.113.0/24 $way4 dev "$interface"
	# shellcheck disable=SC2086
	ip -6 route replace 2001:db8:203::/112 $way6 dev "$interface"
	exit
fi

own=$(number "$name")
address $((10 + own))
# Strict reverse-path filtering would drop translated packets. A client that comes by way of node1 is to stay there.
settings ipv4.ip_forward=1 ipv6.conf.all.forwarding=1
for which in all default "$interface"; do
	settings "ipv4.conf.$which.rp_filter=0" "ipv4.conf.$which.send_redirects=0"
done
if [ "$lab" = standalone ]; then # else flannel makes them
	for other in $(seq "$nodes"); do
		[ "$other" != "$own" ] || continue
		ip route replace "10.244.$other.0/24" via "192.168.77.$((10 + other))"
		ip -6 route replace "fd00:244:0:$other::/64" via "fd00:77::$((10 + other))"
	done
fi
