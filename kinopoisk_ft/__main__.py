"""Run the command line as `python -m kinopoisk_ft`."""

import sys

from kinopoisk_ft.cli import main

sys.exit(main())
