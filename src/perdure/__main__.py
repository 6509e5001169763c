"""`python -m perdure`: the same as `perdure`."""

import sys

from perdure.cli import main

if __name__ == "__main__":
    sys.exit(main())
