"""Run as `python3 packaging/bed`: the folder that holds the package takes the place of the package itself."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bed.cli import main  # noqa: E402  (the line above makes it importable)

sys.exit(main())
