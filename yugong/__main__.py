"""`python -m yugong`, and the `yugong` command."""

import sys

from yugong.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
