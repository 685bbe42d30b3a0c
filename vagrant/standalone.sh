#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A node without Kubernetes: standalone.sh NODE NODES
# One pod on each node, kubia-NUMBER, and for the agent the objects that Kubernetes would have of nodes and pods.
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

rm -rf /etc/lbctl/cluster
mkdir -p /etc/lbctl/cluster
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

cat >/etc/lbctl/lbctl.yaml <<END
sources: [manifests:/vagrant/examples, manifests:/etc/lbctl/cluster]
service_cidr: 10.66.0.0/16,fd00:66::/112
node_name: $name
uplinks: [$(segment_interface "$name")]
END
