"""Writes the Python code of the ``.proto`` files beside this one: ``python -m multifacet.serving.protocol [OUTPUT_ROOT]``."""

import sys
from pathlib import Path

from grpc_tools import protoc  # type: ignore[import-untyped]

SOURCE_ROOT = Path(__file__).resolve().parents[2]
MESSAGES = (
    "serving/protocol/admin.proto",
    "serving/protocol/ids.proto",
    "serving/protocol/frames.proto",
    "serving/protocol/lookup.proto",
    "serving/protocol/ranker.proto",
)
SERVICES = ("serving/protocol/admin.proto", "serving/protocol/lookup.proto", "serving/protocol/ranker.proto")


def generate(output_root: Path) -> None:
    """Write ``serving/protocol/*_pb2.py``, ``*_pb2.pyi`` and ``*_pb2_grpc.py`` below a folder.

    Args:
        output_root: Folder that gets (or has) the path ``serving/protocol``.

    Raises:
        RuntimeError: protoc refused a file; its message is on stderr.
    """
    include = f"-I{SOURCE_ROOT}"
    runs = [
        [include, f"--python_out={output_root}", f"--pyi_out={output_root}", *MESSAGES],
        [include, f"--grpc_python_out={output_root}", *SERVICES],
    ]
    for arguments in runs:
        status = protoc.main(["protoc", *arguments])
        if status != 0:
            raise RuntimeError(f"protoc {' '.join(arguments)} ended with status {status}")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE_ROOT)
