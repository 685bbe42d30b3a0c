#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# shellcheck disable=SC2016
# Ask a lab's Services what make lab asks them, and more; say which checks passed. Exit code: 0 when all did, else 1.
#   vagrant/smoke.sh                                           the machines of the Vagrantfile
#   vagrant/smoke.sh .venv/bin/lbctl lab exec --id lab         a lab of network namespaces
# COMMAND, if given, is called as: COMMAND PLACE -- WORD…, and runs the words at that place. Places are client, node1,
# node2, … and the names of pods. NODES says how many nodes there are, if not 3 machines or 2 namespaces; WAIT, how
# many seconds they may take to start; LAB, which machines they are, as for the Vagrantfile; REQUESTS, how many to send for one check.
set -euo pipefail

nodes=${NODES:-2} lab=${LAB:-namespaces}
if [ $# = 0 ]; then
	lab=${LAB:-kubernetes}
	set -- "$(dirname "$(realpath "$0")")/on.sh"
	nodes=${NODES:-3}
fi
run=("$@") wait=${WAIT:-300} requests=${REQUESTS:-24}
failures=0
udp_client='
import socket, sys
for number in range(int(sys.argv[1])):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(10)
        asking.connect(("10.66.9.9", 7000))
        asking.send(b"hello")
        print(asking.recv(2048).decode())
'

at() { "${run[@]}" "$1" -- "${@:2}"; }

# ask PLACE URL [OPTION…]: the answers to so many requests, each over a connection of its own
ask() {
	at "$1" sh -c 'url=$1 count=$2; shift 2; for _ in $(seq "$count"); do curl -sg -m 10 "$@" "$url"; done' \
		sh "$2" "$requests" "${@:3}" || true
}

# pods <ANSWERS: who answered, once each
pods() { awk '/^You.ve hit / {print $3}' | sort -u; }

# check WHAT WANTED FOUND
check() {
	if [ "$2" = "$3" ]; then
		echo "ok    $1"
	else
		echo "FAIL  $1: wanted $2, found $3"
		failures=$((failures + 1))
	fi
}

# answers WHAT one|several PLACE URL [OPTION…]: every request is answered, by one pod or by several
answers() {
	local what=$1 wanted=$2 text count who
	shift 2
	text=$(ask "$@")
	count=$(grep -c "^You've hit " <<<"$text") || true
	who=$(pods <<<"$text" | wc -l)
	[ "$who" -le 1 ] || who=several
	check "$what" "$requests answers from $wanted" "$count answers from ${who/#1/one}"
}

# within SECONDS COMMAND…: yes once it succeeds, else no
within() {
	local until=$((SECONDS + $1))
	shift
	until "$@"; do
		[ $SECONDS -lt $until ] || { echo no && return; }
		sleep 1
	done
	echo yes
}

all_healthy() {
	local node
	for node in $(seq "$nodes"); do
		at client curl -sf -m 10 -o /dev/null "http://192.168.77.$((10 + node)):10256/healthz" || return 1
	done
}
several_pods() {
	[ "$(ask client http://192.168.77.11:30123/ | pods | wc -l)" -ge "$nodes" ]
}

check "every node is healthy, as seen from outside" yes "$(within "$wait" all_healthy)"
check "as many pods answer as there are nodes" yes "$(within "$wait" several_pods)"
pod=$(ask client http://192.168.77.11:30123/ | pods | head -n 1)
[ -n "$pod" ] || { echo "FAIL  no pod answers; the rest cannot be asked" && exit 1; }

for node in $(seq "$nodes"); do
	answers "NodePort on node$node, from outside" several client "http://192.168.77.$((10 + node)):30123/"
	answers "NodePort on node$node over IPv6" several client "http://[fd00:77::$((10 + node))]:30126/"
	answers "clusterIP from a process of node$node" several "node$node" http://10.66.5.6/
done
answers "load-balancer address, from outside" several client http://203.0.113.22/
answers "external address, from outside" several client http://198.51.100.7/
answers "clusterIP from a pod, no affinity" several "$pod" http://10.66.5.6/
answers "clusterIP from a pod over IPv6" several "$pod" "http://[fd00:66::66]/"
answers "clusterIP from a pod, ClientIP affinity" one "$pod" http://10.66.13.240/
answers "its second port" one "$pod" http://10.66.13.240:90/
answers "affinity of another client, from outside" one client http://10.66.13.240/ --interface 192.168.77.101
answers "Service with hand-made Endpoints" one "$pod" http://10.66.10.171/

text=$(ask "$pod" http://10.66.5.6/hostname | sort -u)
check "a pod reaches itself through its Service" "$pod" "$(grep -x "$pod" <<<"$text")"

# A local backend sees the client, one elsewhere the node that forwarded.
text=$(ask client http://192.168.77.11:30123/clientip | sort -u | tr '\n' ' ')
check "source addresses are kept where they can be" "192.168.77.100 192.168.77.11 " "$text"

# Segments of full size, both ways, from a local backend and from one elsewhere.
text=$(at client sh -c 'for _ in $(seq 8); do curl -s -m 30 "$1" | wc -c; done' \
	sh "http://203.0.113.22/large?bytes=300000" | uniq -c | tr -s ' ')
check "long answers arrive whole" " 8 300000" "$text"
text=$(at client sh -c 'for _ in $(seq 8); do head -c 300000 /dev/zero | curl -s -m 30 --data-binary @- "$1"; done' \
	sh http://203.0.113.22/ | awk '{print $3}' | uniq -c | tr -s ' ')
check "long requests arrive whole" " 8 300000" "$text"

# Names, by the cluster's DNS; and Ingress, whose nginx sees who asks.
if [ "$lab" != kubernetes ]; then # there CoreDNS answers, and nobody serves Ingresses
	answers "a Service by its name, from a pod" several "$pod" http://kubia-nodeport.default/
	text=$(at "$pod" getent hosts kubia-nodeport || true)
	check "its full name" "10.66.5.6 kubia-nodeport.default.svc.cluster.local" "$(tr -s ' ' <<<"$text")"
	text=$(at "$pod" getent ahostsv4 kubia-headless | awk '{print $1}' | sort -u | wc -l || true)
	check "a headless Service's name is its pods" several "$([ "$text" -lt 2 ] || echo several)"
	for address in 203.0.113.80 '[2001:db8:203::80]'; do
		name=kubia.example.com:80:$address
		answers "Ingress at $address" several client http://kubia.example.com/ --resolve "$name"
	done
	text=$(at client curl -s -m 10 --resolve kubia.example.com:80:203.0.113.80 http://kubia.example.com/headers || true)
	check "Ingress tells who asks" 192.168.77.100 "$(tr -d '\r' <<<"$text" | awk '$1 == "X-Forwarded-For:" {print $2}')"
fi

# Who has the address, says one of the nodes: they announce it on the segment.
if [ "$lab" = standalone ]; then
	for address in 203.0.113.22 2001:db8:203::80; do
		text=$(at client ip neigh show to "$address" || true)
		check "a node answers for $address" 1 "$(grep -c ' lladdr 02:77:00:00:00:0[1-9]' <<<"$text" || true)"
	done
fi

text=$(at "$pod" python3 -I -S -c "$udp_client" "$requests" || true)
check "UDP echo from a pod" "$requests" "$(grep -c ' echo hello$' <<<"$text" || true)"

for place in client node1 "$pod"; do
	code=0
	at "$place" curl -s -m 10 -o /dev/null http://10.66.5.6:81/ || code=$?
	# 28 would be: nobody said anything
	check "a port that the Service does not have is refused: $place" "curl ends with 7" "curl ends with $code"
done

[ $failures = 0 ] || { echo "$failures checks failed" && exit 1; }
echo "all checks passed"
