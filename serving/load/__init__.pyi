from .open_loop import LoadResult as LoadResult
from .open_loop import run_open_loop as run_open_loop
from .workload import lookup_request as lookup_request
from .workload import rank_request as rank_request
