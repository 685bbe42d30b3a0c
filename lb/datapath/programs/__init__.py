# SPDX-License-Identifier: Apache-2.0
"""From C sources to loaded programs."""
