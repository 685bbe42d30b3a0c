# SPDX-License-Identifier: Apache-2.0
"""Services change hands on a node while connections are open: from kube-proxy to us, and back.

kube-proxy's connections are entries of netfilter's conntrack, ours are flows in the maps. :mod:`conntrack`
reads and writes the former, :mod:`adopt` writes the latter beside the programs that run; :mod:`moves` says of
one connection what it is on either side. :mod:`take_over` takes Services over, :mod:`give_back` gives them
back; both tell in their first lines why no packet meets a gap. Nothing of this is in an agent's memory.
"""
