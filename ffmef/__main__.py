"""Makes ``python -m ffmef`` do what the ``ffmef`` command does."""

import sys

from ffmef.cli import main

sys.exit(main())
