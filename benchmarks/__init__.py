"""Dumps and restores of real processes, measured: ours and everyone else's, in turn.

    python -m benchmarks [--list] [--full] [--json FILE] …    measure          (`make bench`)
    python -m benchmarks.report FILE --into PAGE              tables from FILE  (`make figures`)
    python -m benchmarks.plot FILE DIRECTORY                  plots from FILE   (`make figures`)

`workloads` are what is dumped, `kinds` (with `streamer` and `floors`) who stores it,
`experiments` which of them meet; `measure` has the clocks, `results` the file and its statistics.
"""

import os

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
"""What is installed has its bytecode: without, each command compiles for a tenth of a second."""
