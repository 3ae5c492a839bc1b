"""`python -m sartor COMMAND` is `sartor COMMAND`, also where that script is not on the PATH."""

import sys

from sartor.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
