"""``python -m edge_app`` is the console script ``edge-app``."""

import sys

from edge_app.cli import main

sys.exit(main())
