"""CRIU images made by hand, with pycriu: what no dump here would hold."""

from __future__ import annotations

import io
from typing import Any

import pycriu.images

PAGE = 4096
ARGUMENTS_AT = 0x7FFF_0000_0000
STACK = {"start": ARGUMENTS_AT, "end": ARGUMENTS_AT + 2 * PAGE, "pgoff": 0, "shmid": 0, "prot": 3,
         "flags": 0x22, "status": 0x201, "fd": -1}  # fmt: skip
DATA_AT = 0x10_0000


def image(magic: str, *entries: dict[str, Any]) -> bytes:
    """An image of kind *magic*."""
    out = io.BytesIO()
    pycriu.images.dump({"magic": magic, "entries": [dict(entry) for entry in entries]}, out)
    return out.getvalue()


def run(vaddr: int, pages: int, flags: int = 4) -> dict[str, int]:
    """An entry of a pagemap, for any pycriu: 4.2 has the count in a field of its own."""
    return {"vaddr": vaddr, "nr_pages": pages, "compat_nr_pages": pages, "flags": flags}


def process(
    pid: int, parent: int = 0, *, command: bytes = b"", name: str = "cooked", data: bytes = b""
) -> dict[str, bytes]:
    """The images of one process: its command line in its stack, *data* at DATA_AT."""
    vma = STACK | {
        "start": DATA_AT,
        "end": DATA_AT + max(len(data), PAGE),
    }
    runs = [run(DATA_AT, len(data) // PAGE, 4)] if data else []
    runs.append(run(ARGUMENTS_AT, 1, 4))
    zeros = {"blk_sigset": 0, "exit_code": 0, "flags": 0, "personality": 0}
    mm = dict.fromkeys(
        ("mm_start_code", "mm_end_code", "mm_start_data", "mm_end_data", "mm_start_brk",
         "mm_brk", "mm_env_start", "mm_env_end", "exe_file_id"), 0,
    )  # fmt: skip
    return {
        f"core-{pid}.img": image(
            "CORE", {"mtype": "X86_64", "tc": {"task_state": 1, "comm": name} | zeros}
        ),
        f"mm-{pid}.img": image(
            "MM",
            mm
            | {
                "mm_start_stack": ARGUMENTS_AT,
                "mm_arg_start": ARGUMENTS_AT,
                "mm_arg_end": ARGUMENTS_AT + len(command),
                "vmas": [vma, STACK],
            },
        ),
        f"pagemap-{pid}.img": image("PAGEMAP", {"pages_id": pid}, *runs),
        f"pages-{pid}.img": data + command.ljust(PAGE, b"\0"),
        f"fs-{pid}.img": image("FS", {"cwd_id": 1, "root_id": 1}),
        f"ids-{pid}.img": image(
            "IDS", {"vm_id": pid, "files_id": pid, "fs_id": pid, "sighand_id": pid}
        ),
        f"fdinfo-{pid}.img": image("FDINFO", {"id": 1, "flags": 0, "type": "REG", "fd": 0}),
    }


def dump_of(*pids_and_parents: tuple[int, int], **images: bytes) -> dict[str, bytes]:
    """The images of all of a dump but those of its processes; *images* by name without `.img`."""
    fown = {"uid": 0, "euid": 0, "signum": 0, "pid_type": 0, "pid": 0}
    regular = {"id": 1, "flags": 0, "pos": 7, "fown": fown, "name": "/data/file"}
    return {
        "pstree.img": image(
            "PSTREE",
            *(
                {"pid": pid, "ppid": parent, "pgid": pid, "sid": pid, "threads": [pid]}
                for pid, parent in pids_and_parents
            ),
        ),
        "files.img": image("FILES", {"type": "REG", "id": 1, "reg": regular}),
        "inventory.img": image("INVENTORY", {"img_version": 1}),
    } | {f"{name}.img": data for name, data in images.items()}
