"""Provide the command `python -m kinopoisk_ft.doctor`."""

import sys

from kinopoisk_ft.commands.doctor import main

if __name__ == "__main__":
    sys.exit(main())
