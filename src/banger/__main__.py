"""`python -m banger`."""

import sys

from banger.cli.main import main

sys.exit(main())
