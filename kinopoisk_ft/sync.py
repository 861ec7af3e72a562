"""Provide the command `python -m kinopoisk_ft.sync`."""

import sys

from kinopoisk_ft.commands.sync import main

if __name__ == "__main__":
    sys.exit(main())
