"""`python -m kinopoisk_ft.doctor`: see `kinopoisk_ft/commands/doctor.py`."""

import sys

from kinopoisk_ft.commands.doctor import main

if __name__ == "__main__":
    sys.exit(main())
