"""Share code between the benchmarks."""

import sys
from pathlib import Path

# The folder of the benchmarks contains `profile.py`. cProfile imports the module `profile` of the
# standard library, so the folder must be at the end of the path.
_FOLDER = Path(__file__).parents[1]
sys.path[:] = [x for x in sys.path if Path(x).resolve() != _FOLDER] + [str(_FOLDER)]
