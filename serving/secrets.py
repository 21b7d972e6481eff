"""Tokens and certificates that are read again when their files change."""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
from pathlib import Path

import grpc

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0

Stamp = tuple[tuple[int, int, int], ...]


def read_token(path: str | os.PathLike[str] | None) -> str | None:
    """The token in a file, without the white space around it; None without a file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds no token, or one that does not fit into a header.
    """
    if path is None:
        return None
    try:
        token = Path(path).read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        token = ""
    if not token or not token.isascii() or not token.isprintable():
        raise ValueError(f"{path} holds no token: expected one line of printable ASCII, such as `openssl rand -hex 32` writes")
    return token


class TokenFile:
    """A token that is read again, a second later at most, once its file was changed.

    Args:
        path: Its file; None: there is no token.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds no token.
    """

    def __init__(self, path: str | os.PathLike[str] | None):
        self._path = Path(path) if path is not None else None
        self._stamp = _stamp(self._path)
        self._token = read_token(path)
        self._look_at = time.monotonic() + _LOOK_EVERY_S
        self._failed: Stamp | None = None

    @property
    def token(self) -> str | None:
        """The token; None if there is none. One that cannot be read any more stays what it was."""
        if self._path is not None and time.monotonic() >= self._look_at:
            self._look()
        return self._token

    @property
    def metadata(self) -> tuple[tuple[str, str], ...] | None:
        """What a client sends with a call."""
        token = self.token
        return (("authorization", f"Bearer {token}"),) if token is not None else None

    def reload(self) -> None:
        """Read it now."""
        self._stamp = ()
        self._look()

    def _look(self) -> None:
        self._look_at = time.monotonic() + _LOOK_EVERY_S
        stamp = _stamp(self._path)
        if stamp in {self._stamp, self._failed}:
            return
        try:
            self._token = read_token(self._path)
        except (OSError, ValueError) as error:
            self._failed = stamp
            logger.error("the token stays what it was: %s", error)  # noqa: TRY400
            return
        self._stamp, self._failed = stamp, None
        logger.info("read the token in %s again", self._path)


class ChangingFiles:
    """Some files, looked at once a second at most.

    Args:
        *paths: The files; None for one that there is not.
    """

    def __init__(self, *paths: str | os.PathLike[str] | None):
        self._paths = [Path(path) for path in paths if path is not None]
        self._stamp = _stamp(*self._paths)
        self._look_at = time.monotonic() + _LOOK_EVERY_S

    def have_changed(self) -> bool:
        """Whether one of them was changed since this was last true."""
        if not self._paths or time.monotonic() < self._look_at:
            return False
        self._look_at = time.monotonic() + _LOOK_EVERY_S
        stamp = _stamp(*self._paths)
        changed, self._stamp = stamp != self._stamp, stamp
        return changed


def check_pair(certificate: str | os.PathLike[str], key: str | os.PathLike[str]) -> None:
    """Refuse a certificate and a key that do not belong together.

    Raises:
        OSError: A file cannot be read.
        ValueError: They are no PEM files of their kind, or not of one another.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        raise ValueError(
            f"certificate {certificate} and key {key} cannot be used together ({error.reason or error}): expected PEM files, "
            "the key without a password and the certificate's own"
        ) from error


class ServerIdentity:
    """A server's certificate and key, read again once their files were changed; connections that exist stay.

    Args:
        certificate: PEM file of the certificate chain.
        key: PEM file of its private key.
        client_ca: PEM file of the authority that must have signed a client's certificate; None asks for none.

    Raises:
        OSError: A file cannot be read.
        ValueError: It is no PEM file of its kind, or certificate and key do not belong together.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None):
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._lock = threading.Lock()
        self._stamp = self._stamp_now()
        self._failed: Stamp | None = None
        self._configuration = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """What a gRPC server listens with."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration, self._fetch, require_client_authentication=self._client_ca is not None
        )

    def reload(self) -> None:
        """Read the files now, changed or not."""
        with self._lock:
            self._stamp = ()
            self._failed = None
        self._fetch()

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """What a handshake uses; called by gRPC at each."""
        stamp = self._stamp_now()
        with self._lock:
            if stamp not in {self._stamp, self._failed}:
                try:
                    self._configuration = self._read()
                except (OSError, ValueError) as error:
                    self._failed = stamp  # the two files are replaced one after the other: the next look may find a pair
                    logger.error("the certificate stays what it was: %s", error)  # noqa: TRY400
                else:
                    self._stamp, self._failed = stamp, None
                    logger.info("read the certificate %s again", self._certificate)
            return self._configuration

    def _read(self) -> grpc.ServerCertificateConfiguration:
        while True:
            stamp = self._stamp_now()
            certificate, key = self._certificate.read_bytes(), self._key.read_bytes()
            client_ca = self._client_ca.read_bytes() if self._client_ca is not None else None
            self._check()
            if stamp == self._stamp_now():  # what was checked is what was read
                return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=client_ca)

    def _check(self) -> None:
        check_pair(self._certificate, self._key)
        if self._client_ca is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            try:
                context.load_verify_locations(self._client_ca)
            except ssl.SSLError as error:
                raise ValueError(f"{self._client_ca} holds no certificate of an authority ({error.reason or error})") from error

    def _stamp_now(self) -> Stamp:
        return _stamp(self._certificate, self._key, self._client_ca)


def _stamp(*paths: Path | None) -> Stamp:
    """Changes whenever one of the files does, through links as well."""
    found = []
    for path in paths:
        if path is None:
            continue
        try:
            status = path.stat()
        except OSError:
            found.append((0, 0, 0))
        else:
            found.append((status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(found)
