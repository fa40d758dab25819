"""Makes this folder's ``prep_helpers`` importable without turning the folder into a package."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
