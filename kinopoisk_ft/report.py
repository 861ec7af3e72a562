"""Run `python -m kinopoisk_ft.report`, which is implemented in `commands/report.py`."""

import sys

from kinopoisk_ft.commands.report import main

if __name__ == "__main__":
    sys.exit(main())
