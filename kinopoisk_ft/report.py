"""`python -m kinopoisk_ft.report`: see `kinopoisk_ft/commands/report.py`."""

import sys

from kinopoisk_ft.commands.report import main

if __name__ == "__main__":
    sys.exit(main())
