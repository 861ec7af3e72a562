"""`python -m kinopoisk_ft.sync`: see `kinopoisk_ft/commands/sync.py`."""

import sys

from kinopoisk_ft.commands.sync import main

if __name__ == "__main__":
    sys.exit(main())
