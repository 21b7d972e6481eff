"""What every room's tests share: limits on threads, hypothesis' profiles, and where the data is."""

import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# Set before torch and numba are imported: tests run small kernels, which many threads make slower, not faster.
_NUM_THREADS = str(min(4, os.cpu_count() or 1))
for _variable in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_variable, _NUM_THREADS)
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["COLUMNS"] = "120"  # tables as wide whatever terminal the tests run in, and none as in CI

# What a script starts in the background ignores Ctrl-C, and would pass that on to all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# PyKEEN registers every optimiser class that is loaded when it is imported, and refuses two of one name, as TorchRec's
# are: it has to come before any test's imports.
import pykeen.evaluation  # noqa: E402, F401

# No deadline: an example's first run may compile a numba kernel. In CI the same examples every time, so that a
# failure is the change's and not the dice's; elsewhere new ones, so that the search goes on.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


_ROOMS = ("artifacts", "contrastive", "graphdb", "inputs", "kernels", "kge", "pipeline", "ranking", "serving", "tables")


def pytest_sessionfinish() -> None:
    """Refuse a run in which a room was imported by its bare name: it was then there twice, with two of every class."""
    bare = [room for room in _ROOMS if "multifacet" not in getattr(sys.modules.get(room), "__file__", "multifacet")]
    assert not bare, f"imported from the repository's root instead of from multifacet: {bare}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files with slow tests first, so that no process is left alone with one of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)  # stable: otherwise as collected


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Keep a file's tests, which share its fixtures, in one process where several run.

    The pages that test_readme.py runs share nothing, and take a third of the time: each goes wherever there is room.
    """
    from xdist.scheduler import LoadScopeScheduling  # noqa: PLC0415  (there is none without xdist)

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.split("::", 1)[0]
            return nodeid if path.endswith("test_readme.py") else path

    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def sample_path(repository: Path) -> Path:
    """The folder of the small sample of The Complete Journey that comes with the source."""
    path = repository / "data" / "sample"
    assert path.is_dir(), f"{path} is missing: it comes with the source, so the checkout is incomplete"
    return path
