"""One server as a process: ``python -m multifacet.serving lookup|ranker --config-json '{...}'``.

The `multifacet serve` command does the same from options; this form is what a parent process starts.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence

from pydantic import ValidationError

from multifacet.serving.config import LookupConfig, RankerConfig
from multifacet.serving.errors import ServingError
from multifacet.serving.process import serve_lookup, serve_ranker
from multifacet.serving.tracing import TraceFormatter

logger = logging.getLogger("multifacet.serving")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one server until it is told to stop.

    Returns:
        0 after a drain, 1 if it failed, 2 if the configuration is wrong.
    """
    parser = argparse.ArgumentParser(prog="python -m multifacet.serving", description=__doc__)
    parser.add_argument("role", choices=("lookup", "ranker"))
    parser.add_argument("--config-json", required=True, help="LookupConfig or RankerConfig as one JSON object.")
    parser.add_argument(
        "--stop-at-stdin-end", action="store_true", help="Drain when stdin ends: when the process that holds it dies."
    )
    parsed = parser.parse_args(arguments)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TraceFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    if parsed.stop_at_stdin_end:
        threading.Thread(target=_stop_at_stdin_end, name="stdin-watch", daemon=True).start()
    try:
        if parsed.role == "lookup":
            serve_lookup(LookupConfig.model_validate_json(parsed.config_json))
        else:
            serve_ranker(RankerConfig.model_validate_json(parsed.config_json))
    except ValidationError as error:
        logger.error("the configuration is wrong: %s", error)  # noqa: TRY400  (no traceback: the message says it all)
        return 2
    except (OSError, ValueError, ServingError) as error:
        logger.error("%s", error)  # noqa: TRY400
        return 1
    return 0


def _stop_at_stdin_end() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
