"""Write the Python code of the ``.proto`` files beside this one: ``python -m multifacet.serving.protocol [ROOT]``."""

import sys
from pathlib import Path

from grpc_tools import protoc  # type: ignore[import-untyped]

SOURCE_ROOT = Path(__file__).absolute().parents[3]  # not resolved: the room is a link in the repository
MESSAGES = (
    "multifacet/serving/protocol/admin.proto",
    "multifacet/serving/protocol/ids.proto",
    "multifacet/serving/protocol/frames.proto",
    "multifacet/serving/protocol/lookup.proto",
    "multifacet/serving/protocol/ranker.proto",
)
SERVICES = (
    "multifacet/serving/protocol/admin.proto",
    "multifacet/serving/protocol/lookup.proto",
    "multifacet/serving/protocol/ranker.proto",
)


def generate(output_root: Path) -> None:
    """Write ``multifacet/serving/protocol/*_pb2.py``, ``*_pb2.pyi`` and ``*_pb2_grpc.py`` below a folder.

    Args:
        output_root: Folder that gets (or has) the path ``multifacet/serving/protocol``.

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
