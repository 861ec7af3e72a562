"""Provide the command `python -m kinopoisk_ft.report`."""

import sys

from kinopoisk_ft.commands.report import main

if __name__ == "__main__":
    sys.exit(main())
