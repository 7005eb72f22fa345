"""python -m vision: the coe-vision command, for torchrun."""

import sys

from vision.commands.cli import main

sys.exit(main())
