"""Rows in Redis: one value an id, read by MGET over a Unix socket. A peer to measure against."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import redis

_LOAD_KEYS = 20_000


class RedisRows:
    """A redis-server of its own, filled with rows, within a ``with`` block.

    Args:
        ids: int64 [n].
        rows: uint8 [n, row_bytes], the value of each id.

    Raises:
        FileNotFoundError: There is no redis-server on the PATH.
    """

    def __init__(self, ids: npt.NDArray[np.int64], rows: npt.NDArray[np.uint8]):
        program = shutil.which("redis-server")
        if program is None:
            raise FileNotFoundError("there is no redis-server on the PATH: install Debian's redis-server")
        self._folder = tempfile.TemporaryDirectory(prefix="multifacet-redis-")
        self.address = str(Path(self._folder.name) / "redis.sock")
        arguments = ["--port", "0", "--unixsocket", self.address, "--save", "", "--dir", self._folder.name]
        self._process = subprocess.Popen([program, *arguments], stdout=subprocess.DEVNULL)
        with redis.Redis(unix_socket_path=self.address) as client:
            _wait(client)
            self.version = str(client.info("server")["redis_version"])
            empty = int(client.info("memory")["used_memory"])
            for start in range(0, len(ids), _LOAD_KEYS):
                stop = min(start + _LOAD_KEYS, len(ids))
                values = rows[start:stop]
                client.mset({key: values[place].tobytes() for place, key in enumerate(_keys(ids[start:stop]))})
            self.bytes_per_row = (int(client.info("memory")["used_memory"]) - empty) / len(ids)

    def __enter__(self) -> RedisRows:
        return self

    def __exit__(self, *unused: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()


class RedisClient:
    """Asks a `RedisRows` at an address."""

    def __init__(self, address: str):
        self._client = redis.Redis(unix_socket_path=address)

    def lookup(self, ids: npt.NDArray[np.int64], row_bytes: int) -> npt.NDArray[np.uint8]:
        """uint8 [n, row_bytes] of ids [n], all of them there."""
        values = self._client.mget(_keys(ids))
        return np.frombuffer(b"".join(cast("list[bytes]", values)), np.uint8).reshape(len(ids), row_bytes)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def _keys(ids: npt.NDArray[np.int64]) -> list[bytes]:
    packed = ids.tobytes()
    return [packed[start : start + 8] for start in range(0, len(packed), 8)]


def _wait(client: redis.Redis) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            client.ping()
        except redis.exceptions.ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return
