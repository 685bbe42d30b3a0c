/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The maps, by name. Python creates and pins them (the table is lb/datapath/maps/map_table.py) and hands each
 * one's file descriptor to the compiler, so a map is used as everywhere: bpf_map_lookup_elem(vips, &key).
 * Where the families have a map each, the name stands for that of FAMILY. */
#pragma once
#include "records.h"
#include "tuple.h"

#define MAP(fd) ((void *)bpf_pseudo_fd(1, fd))

#define settings_map   MAP(FD_settings)	      /* [0] -> struct settings */
#define cutover_map    MAP(FD_cutover)	      /* [0] -> enum cutover */
#define ifaces	       MAP(FD_ifaces)	      /* ifindex -> struct iface; 0: the node's primary address */
#define vips	       MAP(FD_vips)	      /* struct vip_key -> struct vip */
#define other_vips     MAP(FD_other_vips)     /* `vips` of the other family: see stranded.h */
#define source_ranges  MAP(FD_source_ranges)  /* struct source_range -> 1 */
#define backends       MAP(FD_backends)	      /* backend id -> struct backend_slot */
#define tables	       MAP(FD_tables)	      /* [line] -> struct table_line */
#define hashing_map    MAP(FD_hashing)	      /* [0] -> struct hashing */
#define flows	       MAP(FD_flows)	      /* [bucket] -> struct flow_bucket, see cache.h */
#define scratches      MAP(FD_scratch)	      /* [0] -> struct scratch, of this CPU */
#define tags_map       MAP(FD_tags)	      /* struct flow_key -> tag of SCTP that its packets show */
#define sockets	       MAP(FD_sockets)	      /* struct socket_key -> struct socket_entry */
#define fragments      MAP(FD_fragments)      /* struct fragment_key -> struct fragment */
#define pieces	       MAP(FD_pieces)	      /* struct piece_key -> struct held_piece */
#define piece_room     MAP(FD_piece_room)     /* [0] -> struct held_piece, of this CPU */
#define affinities     MAP(FD_affinity)	      /* [bucket] -> struct affinity_bucket, see cache.h */
#define crc32c_shifts  MAP(FD_crc32c_shifts)  /* powers of x, see sctp.h */
#define notes	       MAP(FD_notes)	      /* [0] -> struct note, of this CPU */
#define links_map      MAP(FD_links)	      /* [0] -> struct links */
#define hosts	       MAP(FD_hosts)	      /* node id -> struct addr: see direct.h */
#define host_addresses MAP(FD_host_addresses) /* struct addr -> 1: a node of the cluster has it */
#define formers	       MAP(FD_former)	      /* Service port id -> struct former */
#define endpoints      MAP(FD_endpoints)      /* struct socket_address -> backend id */
#define announced_map  MAP(FD_announced)      /* struct announced_key -> struct announced */
#define rivals	       MAP(FD_rivals)	      /* struct announced_key -> struct rival */
#define rates	       MAP(FD_rates)	      /* enum answer -> struct rate, of this CPU */
#define reasons	       MAP(FD_reasons)	      /* hook * REASONS_PER_HOOK + reason -> struct counter */
#define watch_map      MAP(FD_watch)	      /* [0] -> struct watch */
#define draft_map      MAP(FD_draft)	      /* [0] -> struct event, of this CPU */
#define events	       MAP(FD_events)	      /* ring of struct event */

/* See account.h. */
#define traffic_map	     MAP(FD_traffic)	      /* [line] -> struct traffic_line, of this CPU */
#define connections_map	     MAP(FD_connections)      /* backend id -> struct connections */
#define service_counters_map MAP(FD_service_counters) /* Service port id -> struct service_counters */

static __always_inline const struct settings *get_settings(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(settings_map, &zero);
}

/* Who serves connections without a flow. It costs a lookup, so common packets do not ask. */
static __always_inline u32 get_cutover(void)
{
	const u32 *cutover;
	u32 zero = 0;

	cutover = bpf_map_lookup_elem(cutover_map, &zero);
	return cutover ? *cutover : CUTOVER_NONE;
}

static __always_inline const struct hashing *get_hashing(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(hashing_map, &zero);
}
