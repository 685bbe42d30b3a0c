#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A node without Kubernetes: standalone.sh NODE NODES
# One pod on each node, kubia-NUMBER, and for the agent the objects that Kubernetes would have of nodes and pods. Beside
# it what a cluster has for names, Ingress and load-balancer addresses: named, nginx and an allocator, on each node.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
# shellcheck source=vagrant/common.sh
. "$here/common.sh"

name=$1 nodes=$2

unit "lab-pod" <<END
[Unit]
Description=The pod of this node
After=lab-network.service
[Service]
ExecStart=$here/pod.sh $(number "$name")
ExecStopPost=-ip netns delete kubia-$(number "$name")
Restart=always
[Install]
WantedBy=multi-user.target
END

addresses=/etc/lbctl/cluster/addresses.yaml # given to Services: kept, whatever is written anew
mkdir -p /etc/lbctl/cluster /etc/lbctl/system
find /etc/lbctl/cluster -name '*.yaml' ! -path $addresses -delete

# kube-dns and ingress: pods with the network of their node, so their addresses are the nodes'.
{
	cat <<-END
		apiVersion: v1
		kind: Service
		metadata: {name: kube-dns, namespace: kube-system}
		spec:
		  clusterIP: 10.66.0.10
		  clusterIPs: [10.66.0.10, "fd00:66::10"]
		  ipFamilyPolicy: RequireDualStack
		  selector: {app: kube-dns}
		  ports:
		    - {name: dns, port: 53, protocol: UDP}
		    - {name: dns-tcp, port: 53}
		---
		apiVersion: v1
		kind: Service
		metadata:
		  name: ingress
		  namespace: kube-system
		  annotations: {lbctl/addresses: "203.0.113.80,2001:db8:203::80"}
		spec:
		  type: LoadBalancer
		  clusterIP: 10.66.0.80
		  clusterIPs: [10.66.0.80, "fd00:66::80"]
		  ipFamilyPolicy: RequireDualStack
		  externalTrafficPolicy: Local
		  selector: {app: ingress}
		  ports:
		    - {name: http, port: 80}
		    - {name: https, port: 443}
	END
	for other in $(seq "$nodes"); do
		for app in kube-dns ingress; do
			cat <<-END
				---
				apiVersion: v1
				kind: Pod
				metadata: {name: $app-node$other, namespace: kube-system, labels: {app: $app}}
				spec: {nodeName: node$other, hostNetwork: true, containers: [{name: $app}]}
				status:
				  phase: Running
				  podIP: 192.168.77.$((10 + other))
				  podIPs: [{ip: 192.168.77.$((10 + other))}, {ip: "fd00:77::$((10 + other))"}]
				  conditions: [{type: Ready, status: "True"}]
			END
		done
	done
} >/etc/lbctl/system/system.yaml
for other in $(seq "$nodes"); do
	cat >"/etc/lbctl/cluster/node$other.yaml" <<-END
		apiVersion: v1
		kind: Node
		metadata:
		  name: node$other
		spec:
		  podCIDRs: [10.244.$other.0/24, "fd00:244:0:$other::/64"]
		status:
		  addresses:
		    - {type: InternalIP, address: 192.168.77.$((10 + other))}
		    - {type: InternalIP, address: "fd00:77::$((10 + other))"}
		---
		apiVersion: v1
		kind: Pod
		metadata:
		  name: kubia-$other
		  labels:
		    app: kubia
		spec:
		  nodeName: node$other
		  containers:
		    - name: kubia
		      image: lab
		      ports:
		        - {name: http-default, containerPort: 8080}
		        - {name: http-mux1, containerPort: 8090}
		        - {name: echo, containerPort: 9000, protocol: UDP}
		status:
		  phase: Running
		  podIP: 10.244.$other.2
		  podIPs: [{ip: 10.244.$other.2}, {ip: "fd00:244:0:$other::2"}]
		  conditions: [{type: Ready, status: "True"}]
	END
done

cat >/etc/lbctl/pools.yaml <<END
pools: [{name: lab, addresses: [203.0.113.0/24, "2001:db8:203::/112"], avoid: [first, last]}]
END
# Whoever is on the segment may write names.
(umask 077 && echo bGJjdGwtbGFiLWxiY3RsLWxhYi1sYmN0bC1sYWItMTI= >/etc/lbctl/names.secret)

cat >/etc/lbctl/lbctl.yaml <<END
sources: [manifests:/vagrant/examples, manifests:/etc/lbctl/system, manifests:/etc/lbctl/cluster]
service_cidr: 10.66.0.0/16,fd00:66::/112
node_name: $name
uplinks: [$(segment_interface "$name")]
announce: arp
announce_networks: [203.0.113.0/24, "2001:db8:203::/112"]
END
