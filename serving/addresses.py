"""Where a server listens and a client connects: ``host:port`` or ``unix:/path``."""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

_UNIX_PATH_BYTES = 107  # sockaddr_un.sun_path less its final zero


@dataclass(frozen=True, kw_only=True)
class Address:
    """One parsed address.

    Attributes:
        text: As gRPC takes it: ``host:port``, ``[ipv6]:port`` or ``unix:/absolute/path``.
        host: Host name or IP address without brackets; empty for a Unix socket.
        port: TCP port, 0 to let the system choose; 0 for a Unix socket.
        unix_path: Path of the Unix socket, or None.
    """

    text: str
    host: str = ""
    port: int = 0
    unix_path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address.

        Args:
            text: ``host:port``, ``[ipv6]:port`` or ``unix:/path`` (``unix:relative/path`` is made absolute).

        Raises:
            ValueError: Any other form, a port out of range, or a Unix path longer than the system's limit.

        Example:
            >>> Address.parse("127.0.0.1:7000").port
            7000
        """
        forms = "HOST:PORT, [IPV6]:PORT or unix:/PATH"
        if text.startswith("unix:"):
            name = text.removeprefix("unix:")
            name = name.removeprefix("//")
            if not name:
                raise ValueError(f"address {text!r} has no path: expected {forms}")
            path = Path(name).absolute()
            if len(bytes(path)) > _UNIX_PATH_BYTES:
                raise ValueError(
                    f"the path of {text!r} has {len(bytes(path))} bytes, the system allows {_UNIX_PATH_BYTES}: "
                    "choose a shorter folder"
                )
            return cls(text=f"unix:{path}", unix_path=path)
        host, separator, port_text = text.rpartition(":")
        if not separator or not port_text.isascii() or not port_text.isdigit() or int(port_text) > 65535:
            raise ValueError(f"address {text!r} is not understood: expected {forms}, with a port from 0 to 65535")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
            bracketed = True
        else:
            bracketed = False
        if not host or set(host) & set("/[] \t\n") or (":" in host) != bracketed:
            raise ValueError(f"address {text!r} is not understood: expected {forms}")
        port = int(port_text)
        return cls(text=f"[{host}]:{port}" if bracketed else f"{host}:{port}", host=host, port=port)

    def with_port(self, port: int) -> Address:
        """The same host with the port that the system chose."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return Address(text=f"{host}:{port}", host=self.host, port=port)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it: a Unix socket, a loopback address or ``localhost``."""
        if self.unix_path is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # another host name: it may resolve to anything
            return False

    @property
    def is_name(self) -> bool:
        """Whether it is a name to be looked up, which may have several addresses."""
        if self.unix_path is not None or self.host == "localhost":
            return False
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return True
        return False

    def refuse_if_taken(self) -> None:
        """Refuse a Unix socket that a live server answers on.

        gRPC unlinks an existing socket file before it binds, so that a second server would silently take over the
        name of the first. (For TCP, the listener turns SO_REUSEPORT off instead.)

        Raises:
            OSError: A server listens there, or the path is something other than a socket.
        """
        if self.unix_path is None or not self.unix_path.exists():
            return
        if not stat.S_ISSOCK(self.unix_path.stat().st_mode):
            raise OSError(f"{self.unix_path} exists and is not a socket: choose another path to listen on")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(self.unix_path))
            except ConnectionRefusedError:
                return  # left over from a server that was killed
        raise OSError(f"another server listens on {self.text}: stop it, or choose another path")

    def check_free(self) -> None:
        """Refuse an address that cannot be listened on, before time is spent on anything else.

        Raises:
            OSError: It is taken, is not this machine's, or its folder is not there.
        """
        if self.unix_path is not None:
            self.refuse_if_taken()
            folder = self.unix_path.parent
            if not folder.is_dir():
                raise OSError(f"cannot listen on {self.text}: there is no folder {folder}")
            if not os.access(folder, os.W_OK):
                raise OSError(f"cannot listen on {self.text}: {folder} may not be written to")
            return
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            raise OSError(f"cannot listen on {self.text}: {error}. Is another server there?") from error

    def __str__(self) -> str:
        return self.text
