"""`python -m asdm_cli` is `asdm`."""

import sys

from asdm_cli.cli import main

sys.exit(main())
