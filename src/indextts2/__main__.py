"""`python -m indextts2`."""

import sys

from indextts2.cli.main import main

sys.exit(main())
