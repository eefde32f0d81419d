"""``python -m hetsched.cli``."""

import sys

from hetsched.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
