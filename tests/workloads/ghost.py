"""An open file of *size_mib* that is deleted; with *linked* another name for it is left."""

import hashlib
import os

import _program

size = _program.PARAMS["size_mib"] << 20
path = os.path.join(_program.STATE_DIR, "ghost")
fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
os.write(fd, os.urandom(size))
if _program.PARAMS.get("linked"):
    os.link(path, path + "-kept")
os.unlink(path)


def report() -> dict[str, object]:
    return {
        "digest": hashlib.sha256(os.pread(fd, size, 0)).hexdigest(),
        "links": os.fstat(fd).st_nlink,
    }


_program.run(report)
