"""What several test files share: processes, jobs, hooks, comparisons of results, a W&B server."""

import os
import sys


def python_path() -> str:
    """PYTHONPATH for a child process that imports the same test modules as this one."""
    return os.pathsep.join(p for p in sys.path if p)
