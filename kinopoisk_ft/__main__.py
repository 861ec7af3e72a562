"""Provide the command `python -m kinopoisk_ft`."""

import sys

from kinopoisk_ft.cli import main

sys.exit(main())
