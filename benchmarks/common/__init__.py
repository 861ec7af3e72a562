"""What the benchmarks share."""

import sys
from pathlib import Path

# Their folder holds `profile.py`, which would stand in for the standard library's when cProfile
# asks for it: at the end of the path the library's is found first.
_FOLDER = Path(__file__).parents[1]
sys.path[:] = [x for x in sys.path if Path(x).resolve() != _FOLDER] + [str(_FOLDER)]
