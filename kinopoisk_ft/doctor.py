"""Run `python -m kinopoisk_ft.doctor`, which is implemented in `commands/doctor.py`."""

import sys

from kinopoisk_ft.commands.doctor import main

if __name__ == "__main__":
    sys.exit(main())
