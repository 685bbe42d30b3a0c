# SPDX-License-Identifier: Apache-2.0
"""``python -m lb`` is ``lbctl``."""

import sys

from lb.cli import entry

sys.exit(entry())
