# SPDX-License-Identifier: Apache-2.0
"""What a map is: its structs, its size, where it is pinned, and how its rows are read and written."""
