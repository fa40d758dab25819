"""`python -m dualscore`: the command line."""

import sys

from dualscore.cli import main

sys.exit(main())
