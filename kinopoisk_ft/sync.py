"""Run `python -m kinopoisk_ft.sync`, which is implemented in `commands/sync.py`."""

import sys

from kinopoisk_ft.commands.sync import main

if __name__ == "__main__":
    sys.exit(main())
