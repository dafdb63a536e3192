"""`python -m galiplib.course`: run notebooks of the course headless."""

import sys

from .runner import main

sys.exit(main())
