"""The socket that a framed server listens on."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multifacet.serving.addresses import Address

_BACKLOG = 1024


def listen(address: Address, mode: int) -> tuple[socket.socket, str]:
    """Bind and listen.

    Args:
        address: Where.
        mode: Permissions of a Unix socket.

    Returns:
        The socket, which does not block; and the address that was bound.

    Raises:
        OSError: It is taken or cannot be bound.
    """
    address.refuse_if_taken()
    if address.unix_path is not None:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        address.unix_path.unlink(missing_ok=True)
        target: str | tuple[str, int] = str(address.unix_path)
    else:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        target = (address.host, address.port)
    try:
        listening.bind(target)
        if address.unix_path is not None:
            address.unix_path.chmod(mode)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise OSError(f"cannot listen on {address.text}: {error}. Is another server there?") from error
    if address.unix_path is not None:
        return listening, address.text
    return listening, address.with_port(listening.getsockname()[1]).text
