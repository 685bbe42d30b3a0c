#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What serves names, Ingresses and load-balancer addresses on a node without Kubernetes, from the same folders as the
# agent: servers.sh NODE
# lbctl is installed already. node1 also feeds the name servers of all nodes.
set -euo pipefail
# shellcheck source=vagrant/common.sh
. "$(dirname "$(realpath "$0")")/common.sh"

name=$1
last=$((10 + $(number "$name")))
python="/opt/lbctl/bin/python -m"
wanted="--source manifests:/vagrant/examples --source manifests:/etc/lbctl/system"
folders="$wanted --source manifests:/etc/lbctl/cluster" # with what has come of it: pods, and addresses that were given
services="--service-cidr 10.66.0.0/16,fd00:66::/112"
names="$services --pod-cidr 10.244.0.0/16,fd00:244::/48 --secret-file /etc/lbctl/names.secret"
mapfile -t resolvers < <(awk '$1 == "nameserver" {print "--resolver " $2}' /etc/resolv.conf)

# service NAME DESCRIPTION COMMAND
service() {
	unit "$1" <<-END
		[Unit]
		Description=$2
		After=lab-network.service
		[Service]
		ExecStart=$3
		Restart=always
		RestartSec=1
		[Install]
		WantedBy=multi-user.target
	END
}

service lab-addresses "Load-balancer addresses of Services" \
	"/opt/lbctl/bin/lbctl addresses run --pools /etc/lbctl/pools.yaml --metrics-address off $services $wanted \
	--state /etc/lbctl/cluster/addresses.yaml"
service lab-dns "DNS server of the cluster" \
	"$python lb.names.server --address 192.168.77.$last --address fd00:77::$last $names ${resolvers[*]}"
service lab-ingress "nginx for Ingresses" "$python lb.ingress $folders $services --folder /var/lib/lab-ingress"
[ "$name" != node1 ] || service lab-names "Feeds the DNS servers of the cluster" "$python lb.names $folders $names"
