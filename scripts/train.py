"""Train a fusion network; the same as ``ffmef train``."""

import sys

from ffmef.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
