"""Counts, holds memory, and tells both on request: what the demo checkpoints.

    demo-counter.py STATE MIB

Writes `counter sha256-of-its-memory` to STATE whenever STATE.ask is there.
"""

import hashlib
import os
import sys
import time

os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # what its caller has open CRIU may not know
state, size_mib = sys.argv[1], int(sys.argv[2])
mib = 1 << 20
text = b"".join(b"%d: a line of text, as logs and tables have them\n" % i for i in range(30_000))
memory = bytearray()
for i in range(size_mib):
    memory += (os.urandom(mib), text[:mib].ljust(mib, b"."), bytes([i % 256]) * mib)[i % 3]

counter = 0
while True:
    counter += 1
    time.sleep(0.01)
    if os.path.exists(state + ".ask"):
        with open(state + ".new", "w") as out:
            out.write(f"{counter} {hashlib.sha256(memory).hexdigest()}")
        os.unlink(state + ".ask")
        os.rename(state + ".new", state)
