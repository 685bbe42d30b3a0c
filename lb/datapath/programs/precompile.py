# SPDX-License-Identifier: Apache-2.0
"""``python -m lb.datapath.programs.precompile``: compile the programs before an agent starts.

The first start of an agent would otherwise wait for the compiler. An installation, or the building of an
image, runs this module; the instructions are kept in :data:`lb.datapath.programs.build.CACHE`.
"""

import sys

from lb.datapath.programs.loader import compile_ahead
from lb.errors import CompileError

if __name__ == "__main__":
    try:
        compile_ahead()
    except CompileError as error:
        sys.exit(str(error))
