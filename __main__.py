"""`python -m nula`: the command `nula` by another name, as `accelerate launch -m nula` needs it."""

import sys

from nula.cli import main

if __name__ == "__main__":
    sys.exit(main())
