# SPDX-License-Identifier: Apache-2.0
"""``python -m lb.datapath.ahead``: compile now what the first start of an agent would have to wait for.

For whoever installs lbctl, or builds an image of it; the place is :data:`lb.datapath.build.CACHE`.
"""

import sys

from lb.datapath.loader import compile_ahead
from lb.errors import CompileError

if __name__ == "__main__":
    try:
        compile_ahead()
    except CompileError as error:
        sys.exit(str(error))
