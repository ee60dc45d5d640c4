"""`python -m clipstem.serve bundle=…`: score over HTTP, and take the exam in a browser."""

from __future__ import annotations

import logging
from pathlib import Path

import uvicorn

from clipstem import console, shards
from clipstem.config import ServeConfig, verb
from clipstem.images import warm_up
from clipstem.onnx_scorer import OnnxScorer
from clipstem.serve.app import make_app
from clipstem.serve.sittings import Drawn, Prepared

log = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@verb("serve", ServeConfig)
def main(config: ServeConfig) -> None:
    console.show_log_lines()
    questions = (
        Drawn() if config.data is None else Prepared(shards.open_dataset(config.data), config.split)
    )
    engine = OnnxScorer(Path(config.bundle), config.trainer, config.variant)
    warm_up()  # before the first question, not with it
    app = make_app(engine, config, questions)
    if config.host not in LOOPBACK and config.token is None:
        log.warning("everybody who reaches %s may ask; token=<secret> asks who", config.host)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=config.host,
            port=config.port,
            log_level="warning",
            timeout_graceful_shutdown=int(config.timeout_seconds) + 1,
            server_header=False,
        )
    )
    fragment = "" if config.token is None else f"#token={config.token}"
    console.console.print(
        f"the exam: http://{config.host}:{config.port}/{fragment}\n"
        f"the API:  http://{config.host}:{config.port}/docs\nCtrl-C ends it"
    )
    server.run()


if __name__ == "__main__":
    main()
