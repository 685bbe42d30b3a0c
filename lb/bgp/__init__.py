# SPDX-License-Identifier: Apache-2.0
"""Telling routers over BGP which addresses this node serves: a process beside the agent; BIRD is its engine.

``agent's answer → lb.announce.damping → bird_conf() → BIRD → routers``

What is ours is the pure function from peers and addresses to BIRD's configuration, and the wire between; BGP
itself, BFD and TCP's MD5 signatures are BIRD's. Nothing here knows of the datapath, and nothing of it is in
the agent's memory.
"""
