"""What systemd wants to know of a service, in sd_notify(3)'s protocol."""

from __future__ import annotations

import contextlib
import logging
import os
import socket

logger = logging.getLogger(__name__)


def tell(*state: str) -> None:
    """Send *state*, as `READY=1`, to whoever started us and asked; to nobody else.

    As of sd_notify(3): a datagram to the socket $NOTIFY_SOCKET, abstract behind an `@`.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as notify:
            notify.sendto("\n".join(state).encode(), address)
    except OSError as exc:  # systemd then ends us, and says for want of what
        logger.warning("cannot tell the service manager %s: %s", state[0], exc.strerror)
