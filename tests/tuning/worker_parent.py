"""Has a worker run a compiler that never ends, to be killed itself: ``python worker_parent.py ROOT PID_FILE``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    from prefetch_compiler.tuning.measurer import Worker
    from tests.tuning import faults

    Worker(faults.start).run(faults.slow_assembler, (Path(sys.argv[2]),), 600.0, 1)
