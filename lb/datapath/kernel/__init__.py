# SPDX-License-Identifier: Apache-2.0
"""What the kernel can be asked: bpf(2), ring buffers, rtnetlink, tcx, pins, capabilities."""
