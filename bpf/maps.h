/* The maps, by name. Python creates and pins them (the table is lb/datapath/layouts.py) and hands each one's
 * file descriptor to the compiler, so a map is used as everywhere: bpf_map_lookup_elem(vips4, &key). */
#pragma once
#include "types.h"

#define MAP(fd) ((void *)bpf_pseudo_fd(1, fd))

#define settings_map   MAP(FD_settings)	      /* [0] -> struct settings */
#define ifaces	       MAP(FD_ifaces)	      /* ifindex -> struct iface; 0: the node's primary address */
#define vips4	       MAP(FD_vips4)	      /* struct vip4_key -> struct vip */
#define source_ranges4 MAP(FD_source_ranges4) /* struct source_range4 -> 1 */
#define backends4      MAP(FD_backends4)      /* backend id -> struct backend4 */
#define tables	       MAP(FD_tables)	      /* row -> backend id */
#define flows4	       MAP(FD_flows4)	      /* struct flow4_key -> struct flow4 */
#define affinity4      MAP(FD_affinity4)      /* struct affinity4_key -> struct affinity */
#define reasons	       MAP(FD_reasons)	      /* hook * REASONS_PER_HOOK + reason -> struct counter */

static __always_inline const struct settings *get_settings(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(settings_map, &zero);
}
