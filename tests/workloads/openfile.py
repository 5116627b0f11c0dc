"""An open file, read on by 100 bytes at each question: the offset has to survive."""

import os

import _program

path = os.path.join(_program.STATE_DIR, "data")
with open(path, "w") as data:
    data.writelines(f"line {i:08d}\n" for i in range(10_000))
fd = os.open(path, os.O_RDONLY)


def report() -> dict[str, object]:
    offset = os.lseek(fd, 0, os.SEEK_CUR)
    return {"offset": offset, "text": os.read(fd, 100).decode()}


_program.run(report)
