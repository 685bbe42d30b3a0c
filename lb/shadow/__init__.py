# SPDX-License-Identifier: Apache-2.0
"""Shadow mode: the programs decide beside kube-proxy and touch nothing; what they decide is compared.

:mod:`mode` says what such an agent does otherwise than one that serves. :mod:`watcher` reads what the
programs write down (bpf/shadow.h), asks conntrack what netfilter made of the same connection, and has
:mod:`judge` compare the two; :mod:`tally` counts. Nothing of this is in the memory of an agent that serves.
"""
