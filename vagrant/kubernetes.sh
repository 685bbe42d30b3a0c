#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A node of a k3s cluster without kube-proxy: kubernetes.sh NODE NODES, with K3S_VERSION in the environment
# node1 is the control plane; it also gets the objects of examples/.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
# shellcheck source=vagrant/common.sh
. "$here/common.sh"

name=$1 api=192.168.77.11 token=lbctl-lab # whoever is on the segment may join
last=$((10 + $(number "$name")))
flags=(--node-name "$name" --node-ip "192.168.77.$last,fd00:77::$last" --flannel-iface "$(segment_interface "$name")")
role=agent
if [ "$name" = node1 ]; then
	role=server
	flags+=(--disable-kube-proxy --disable "traefik,servicelb,metrics-server,local-storage" --disable-network-policy)
	# The networks of the namespace lab. All nodes are on one segment, so routes between them suffice.
	flags+=(--cluster-cidr "10.244.0.0/16,fd00:244::/48" --service-cidr "10.66.0.0/16,fd00:66::/112")
	flags+=(--flannel-backend host-gw)
else
	flags+=(--server "https://$api:6443")
	for _ in $(seq 300); do
		! curl -sk -m 3 -o /dev/null "https://$api:6443/ping" || break
		sleep 1
	done
fi

say "installing k3s $K3S_VERSION as $role"
installer=$(mktemp)
trap 'rm -f "$installer"' EXIT
curl -sSfL -o "$installer" https://get.k3s.io
INSTALL_K3S_VERSION=$K3S_VERSION K3S_TOKEN=$token sh "$installer" "$role" "${flags[@]}"

# k3s makes this kubeconfig on every node, kube-proxy or not. Its user may do what system:node-proxier lists, which is
# what deploy/base/rbac.yaml lists; its server is on the loopback, so that it needs no Service.
kubeconfig=/var/lib/rancher/k3s/agent/kubeproxy.kubeconfig
for _ in $(seq 300); do
	[ ! -e $kubeconfig ] || break
	sleep 1
done
[ -e $kubeconfig ] || die "k3s has not written $kubeconfig"
mkdir -p /etc/lbctl
cat >/etc/lbctl/lbctl.yaml <<END
sources: [kubernetes]
kubeconfig: $kubeconfig
node_name: $name
uplinks: [$(segment_interface "$name")]
END

[ "$role" = server ] || exit 0
say "applying the examples"
for file in /vagrant/examples/*.yaml; do
	[ "$file" != /vagrant/examples/kubia-replicaset.yaml ] || file=$here/kubia.yaml # of pods with an image
	k3s kubectl apply -f "$file"
done
# A status is no provider's to write here, and `apply` leaves it out.
k3s kubectl patch service kubia-loadbalancer --subresource status --type merge \
	--patch '{"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.22"}]}}}'
