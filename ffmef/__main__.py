"""Makes ``python -m ffmef`` do what the ``ffmef`` command does."""

import sys

from ffmef.start import main

sys.exit(main())
