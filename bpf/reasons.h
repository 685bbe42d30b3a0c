/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every way out of the data plane, by name. Python reads this very table (lb/datapath/maps/layouts.py), so
 * the names in `lbctl status` are the names here. Each hook counts each reason: see finish().
 *
 * X(name, what it means) */
#pragma once

#define REASONS(X)                                                                                           \
	X(NOT_IP, "neither IPv4 nor IPv6: untouched")                                                        \
	X(VLAN, "a VLAN tag: untouched")                                                                     \
	X(MALFORMED, "truncated or inconsistent headers: untouched")                                         \
	X(IP_OPTIONS, "a source route, AH, or too many extension headers: untouched")                        \
	X(FRAGMENT, "a later fragment of a datagram that is not ours: untouched")                            \
	X(OTHER_PROTOCOL, "no protocol of ours: untouched")                                                  \
	X(NOT_VIP, "not for a VIP and not a reply: untouched")                                               \
	X(NEW_LOCAL, "first packet of a flow, backend on this node: translated")                             \
	X(NEW_REMOTE, "first packet of a flow, backend elsewhere: translated")                               \
	X(NEW_HAIRPIN, "first packet of a flow, the pod is its own backend: translated")                     \
	X(NEW_ELSEWHERE, "first packet of a flow, no SNAT port towards its backend, to another: translated") \
	X(FLOW_HIT, "packet of a known flow: translated")                                                    \
	X(REPLY, "reply of a known flow: translated back")                                                   \
	X(ICMP_ERROR, "ICMP error about a packet of a known flow: translated")                               \
	X(PING, "echo request to a VIP: answered")                                                           \
	X(REJECT_NO_ENDPOINT, "the VIP has no endpoint: answered with RST or ICMP")                          \
	X(REJECT_UNKNOWN_PORT, "a clusterIP that has no such port: answered with RST or ICMP")               \
	X(REJECT_UNANSWERED, "to be rejected, but of a kind that must not be answered: dropped")             \
	X(SNAT_EXHAUSTED, "no free SNAT port: dropped")                                                      \
	X(FLOWS_FULL, "no room for a flow entry: dropped")                                                   \
	X(NO_ROUTE, "the FIB has no route to the backend or client: dropped")                                \
	X(TTL_EXPIRED, "TTL reached zero: answered with ICMP time exceeded")                                 \
	X(TO_TC, "left to tc, which can do more than XDP or a socket hook: untouched")                       \
	X(TOO_BIG, "larger than the MTU of the way on: answered with ICMP, which tells the MTU")             \
	X(NO_BACKEND, "a lookup table names a backend that is gone: dropped")                                \
	X(REWRITE_FAILED, "the kernel refused to change the packet: dropped")                                \
	X(NO_LOCAL_ENDPOINT, "traffic policy Local, and endpoints on other nodes alone: dropped")            \
	X(SOURCE_NOT_ALLOWED, "a client outside of loadBalancerSourceRanges: dropped")                       \
	X(STRAY_FRAGMENT, "a later fragment for a VIP, of a datagram whose first is unknown: dropped")       \
	X(FRAGMENT_HELD, "a later fragment that came before its first: held back until that one comes")      \
	X(FRAGMENT_RELEASED, "a first fragment, which enters again with those that came before it")          \
	X(SCTP_FRAGMENT, "an SCTP packet in fragments, whose checksum cannot be kept right: dropped")        \
	X(MARTIAN, "a source address that nothing may be sent to: untouched")                                \
	X(NOT_FOR_US, "in a frame to another host or to many: untouched")                                    \
	X(OTHER_NETNS, "a socket of another network namespace: untouched")                                   \
	X(RATE_LIMITED, "an answer of ours is due, but there were too many lately: dropped")                 \
	X(STEP_MISSING, "a program to go on in is missing, not for a VIP: untouched")                        \
	X(STEP_MISSING_VIP, "a program to go on in is missing, for a VIP or of its flow: dropped")           \
	X(OWN_CONNECTION, "of a connection of the node's own, or of netfilter's: untouched")                 \
	X(FRAGMENTED, "larger than the MTU of the way on, without DF: in fragments, which enter again")      \
	X(SERVICE_LOOP, "Services whose endpoints are each other's addresses, led on too often: dropped")    \
	X(NEIGHBOUR, "ARP request or neighbour solicitation for an address announced here: answered")        \
	X(RIVAL, "another host claims an address that is announced here: untouched")                         \
	X(TO_FORMER_OWNER, "of a connection begun at the address's former owner: sent on to it")             \
	X(REJECT_NO_LISTENER, "the backend, a process of this node, is gone: answered with RST")             \
	X(NEW_DIRECT, "first packet of a flow, backend elsewhere: encapsulated to its node")                 \
	X(DIRECT_STRANGER, "encapsulated, from somebody who is no node of the cluster: dropped")             \
	X(DIRECT_REFUSED, "encapsulated by a node, for no VIP of ours, or not as nodes do it: dropped")      \
	X(SECOND_CHANCE, "encapsulated, of no flow here: on to the node that a former set names")

enum reason {
#define X(name, meaning) REASON_##name,
	REASONS(X)
#undef X
	    REASON_COUNT,
};

/* The hooks, each with its own row of counters. */
#define HOOKS(X)                                                                                             \
	X(XDP_UPLINK, "uplink ingress, XDP")                                                                 \
	X(TC_UPLINK_IN, "uplink or tunnel ingress, tc")                                                      \
	X(TC_UPLINK_OUT, "uplink or tunnel egress, tc")                                                      \
	X(TC_POD_IN, "from a pod, tc")                                                                       \
	X(TC_POD_OUT, "to a pod, tc")                                                                        \
	X(TC_L3_IN, "ingress of a tunnel without link header, tc")                                           \
	X(TC_L3_OUT, "egress of a tunnel without link header, tc")                                           \
	X(SOCK_CONNECT, "a socket connects")                                                                 \
	X(SOCK_SENDMSG, "a datagram to an address of its own")                                               \
	X(SOCK_RECVMSG, "a socket asks where a datagram is from")                                            \
	X(SOCK_GETPEERNAME, "a socket asks who its peer is")                                                 \
	X(TC_LOOPBACK, "from the node to itself, tc")

enum hook {
#define X(name, meaning) HOOK_##name,
	HOOKS(X)
#undef X
	    HOOK_COUNT,
};

/* Programs that no hook runs: the others go on in them, by tail call, with what is rare. */
#define STEPS(X)                                                                                             \
	X(INGRESS, "the long way of a packet that enters")                                                   \
	X(EGRESS, "the long way of a packet that leaves")                                                    \
	X(CONNECT, "selects a backend and creates the flow")                                                 \
	X(ANSWER, "answers a packet itself")                                                                 \
	X(ICMP_ERROR, "translates an ICMP error about a translated packet")                                  \
	X(OWNER, "asks whose a packet is that begins no connection")                                         \
	X(PIECES, "holds fragments until their first comes, and fragments what is too large")                \
	X(CAPTURE, "keeps the first bytes of a packet as it came, for whoever watches")                      \
	X(REPORT, "tells whoever watches what became of a packet")                                           \
	X(NEIGHBOUR, "answers ARP and neighbour solicitations for announced addresses")                      \
	X(WEIGH, "chooses among backends of unequal weights")                                                \
	X(DIRECT_OUT, "encapsulates a packet to the node of its backend")                                    \
	X(DIRECT_IN, "takes a packet of another node out of its encapsulation")                              \
	X(FORMER, "asks which backend an older set names")

enum step {
	BEFORE_STEPS = HOOK_COUNT - 1, /* hooks and steps are numbered through */
#define X(name, meaning) STEP_##name,
	STEPS(X)
#undef X
};

#define PROGRAMS_PER_FAMILY 32 /* in the array of programs, first those of IPv4 */

#define REASONS_PER_HOOK 64 /* stride of a hook's row in `reasons` */
