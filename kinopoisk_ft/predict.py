"""Run `python -m kinopoisk_ft.predict`, which is implemented in `commands/predict.py`."""

import sys

from kinopoisk_ft.commands.predict import main

if __name__ == "__main__":
    sys.exit(main())
