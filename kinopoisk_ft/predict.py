"""Provide the command `python -m kinopoisk_ft.predict`."""

import sys

from kinopoisk_ft.commands.predict import main

if __name__ == "__main__":
    sys.exit(main())
