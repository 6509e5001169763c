"""`python -m perdure.testing.converge`."""

from __future__ import annotations

import sys

from perdure.testing.converge.run import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
