"""What the benchmarks share."""

import sys
from pathlib import Path

# Their folder holds `profile.py`, which would stand in for the standard library's when cProfile
# asks for it; the modules here are found without the folder on the path.
sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).parents[1]]
