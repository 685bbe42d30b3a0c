#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The pod kubia-NUMBER of a node without Kubernetes, in a network namespace of that name: pod.sh NUMBER
# As the lab's pods (lb/lab/topology.py): addresses without a network, all else is behind a fixed neighbour.
set -euo pipefail

number=$1 pod=kubia-$1
gateway_mac=ee:ee:ee:ee:ee:ee
ip4=10.244.$number.2 ip6=fd00:244:0:$number::2

ip netns delete "$pod" 2>/dev/null || true
ip link delete pod-lab 2>/dev/null || true
ip netns add "$pod"
ip link add pod-lab address $gateway_mac type veth peer name eth0 netns "$pod"
ip link set pod-lab up
inside() { ip -n "$pod" "$@"; }
inside link set lo up
inside link set eth0 up
inside address add "$ip4/32" dev eth0
inside address add "$ip6/128" dev eth0 nodad
for gateway in 169.254.1.1 fe80::1; do
	inside neighbour add $gateway lladdr $gateway_mac dev eth0 nud permanent
done
inside route add 169.254.1.1 dev eth0 scope link
inside route add default via 169.254.1.1 dev eth0
inside -6 route add default via fe80::1 dev eth0
ip route replace "$ip4" dev pod-lab scope link src "192.168.77.$((10 + number))"
ip -6 route replace "$ip6" dev pod-lab src "fd00:77::$((10 + number))"

# What kubelet would write; "ip netns exec" mounts it.
mkdir -p "/etc/netns/$pod"
cat >"/etc/netns/$pod/resolv.conf" <<END
nameserver 10.66.0.10
nameserver fd00:66::10
search default.svc.cluster.local svc.cluster.local cluster.local
options ndots:5
END

exec ip netns exec "$pod" /usr/bin/python3 -I -S /vagrant/lb/lab/pod.py "$pod" "$ip4,$ip6" \
	tcp:8080:http-default tcp:8090:http-mux1 udp:9000:echo --
