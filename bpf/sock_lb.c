/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The entries of the socket hooks: cgroup connect, sendmsg, recvmsg and getpeername, of FAMILY's sockets, and
 * of IPv6's sockets that speak IPv4. The latter are loaded for FAMILY 4 alone; there is none for sendmsg,
 * where the kernel runs the hook of the family that is spoken. */
#include "sock.h"

int lb_sock_connect(struct bpf_sock_addr *ctx)
{
	return lead_to_backend(ctx, HOOK_SOCK_CONNECT, PLACE_OWN);
}

int lb_sock_sendmsg(struct bpf_sock_addr *ctx)
{
	return lead_to_backend(ctx, HOOK_SOCK_SENDMSG, PLACE_OWN);
}

int lb_sock_recvmsg(struct bpf_sock_addr *ctx)
{
	return show_vip(ctx, HOOK_SOCK_RECVMSG, PLACE_OWN);
}

int lb_sock_getpeername(struct bpf_sock_addr *ctx)
{
	return show_vip(ctx, HOOK_SOCK_GETPEERNAME, PLACE_OWN);
}

int lb_sock_connect_mapped(struct bpf_sock_addr *ctx)
{
	return lead_to_backend(ctx, HOOK_SOCK_CONNECT, PLACE_MAPPED);
}

int lb_sock_recvmsg_mapped(struct bpf_sock_addr *ctx)
{
	return show_vip(ctx, HOOK_SOCK_RECVMSG, PLACE_MAPPED);
}

int lb_sock_getpeername_mapped(struct bpf_sock_addr *ctx)
{
	return show_vip(ctx, HOOK_SOCK_GETPEERNAME, PLACE_MAPPED);
}
