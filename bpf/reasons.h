/* Every way out of the data plane, by name. Python reads this very table (lb/datapath/layouts.py), so the
 * names in `lbctl status` are the names here. Each hook counts each reason: see finish().
 *
 * X(name, what it means) */
#pragma once

#define REASONS(X)                                                                                           \
	X(NOT_IPV4, "another protocol: untouched")                                                           \
	X(VLAN, "a VLAN tag: untouched")                                                                     \
	X(MALFORMED, "truncated or inconsistent headers: untouched")                                         \
	X(IP_OPTIONS, "IPv4 options: untouched")                                                             \
	X(FRAGMENT, "an IPv4 fragment: untouched")                                                           \
	X(OTHER_PROTOCOL, "neither TCP nor UDP: untouched")                                                  \
	X(NOT_VIP, "not for a VIP and not a reply: untouched")                                               \
	X(NEW_LOCAL, "first packet of a flow, backend on this node: translated")                             \
	X(NEW_REMOTE, "first packet of a flow, backend elsewhere: translated")                               \
	X(NEW_HAIRPIN, "first packet of a flow, the pod is its own backend: translated")                     \
	X(FLOW_HIT, "packet of a known flow: translated")                                                    \
	X(REPLY, "reply of a known flow: translated back")                                                   \
	X(REJECT_NO_ENDPOINT, "the VIP has no endpoint: answered with RST or ICMP")                          \
	X(REJECT_UNANSWERED, "no endpoint, but an RST or sent to many, so not answered: dropped")            \
	X(SNAT_EXHAUSTED, "no free SNAT port: dropped")                                                      \
	X(FLOWS_FULL, "no room for a flow entry: dropped")                                                   \
	X(NO_ROUTE, "the FIB has no route to the backend or client: dropped")                                \
	X(TTL_EXPIRED, "TTL reached zero: dropped")                                                          \
	X(TO_TC, "XDP left the packet to the tc hook: next hop unknown or not reachable by XDP")             \
	X(TOO_BIG, "larger than the egress MTU: dropped")                                                    \
	X(NO_BACKEND, "a lookup table names a backend that is gone: dropped")                                \
	X(REWRITE_FAILED, "the kernel refused to change the packet: dropped")                                \
	X(NO_LOCAL_ENDPOINT, "traffic policy Local, and endpoints on other nodes alone: dropped")            \
	X(SOURCE_NOT_ALLOWED, "a client outside of loadBalancerSourceRanges: dropped")                       \
	X(MARTIAN, "a source address that no single host has: untouched")                                    \
	X(NOT_FOR_US, "for a VIP, but in a frame to another host or to many: untouched")

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
	X(TC_POD_OUT, "to a pod, tc")

enum hook {
#define X(name, meaning) HOOK_##name,
	HOOKS(X)
#undef X
	    HOOK_COUNT,
};

#define REASONS_PER_HOOK 64 /* stride of a hook's row in `reasons` */
