"""`python -m dorl_jax`, the same as the command `dorl-jax`."""

import sys

from dorl_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
