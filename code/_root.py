"""Import this first in a script: it puts the repository's root on the path, so that its packages
are found anywhere.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
