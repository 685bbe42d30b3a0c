# SPDX-License-Identifier: Apache-2.0
"""Mutants of the programs in C, and whether the packet tests notice them: ``make mutants``."""
