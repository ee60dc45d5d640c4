"""`python -m clipstem.serve bundle=…`: score over HTTP, and take the exam in a browser."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from urllib.parse import quote

import uvicorn

from clipstem import console, shards
from clipstem.command import verb
from clipstem.config import ServeConfig
from clipstem.images import warm_up
from clipstem.onnx_scorer import OnnxScorer
from clipstem.question import ClipstemError
from clipstem.serve.app import LOOPBACK, make_app
from clipstem.serve.sittings import Drawn, Prepared

log = logging.getLogger(__name__)

MOST_CONNECTIONS = 1000  # further ones are answered 503


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
    listening = listen(config.host, config.port)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            timeout_graceful_shutdown=int(config.timeout_seconds) + 1,
            limit_concurrency=MOST_CONNECTIONS,
            server_header=False,
        )
    )
    name = f"[{config.host}]" if ":" in config.host else config.host
    address = f"http://{name}:{listening.getsockname()[1]}"
    fragment = "" if config.token is None else f"#token={quote(config.token, safe='')}"
    print(f"the exam: {address}/{fragment}\nthe API:  {address}/docs\nCtrl-C ends it", flush=True)
    server.run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket of that address.

    Raises:
        ClipstemError: if it is no address of this machine, or in use.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        made = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ClipstemError(
            f"{host}:{port} cannot be listened to ({error.strerror}); choose another port=, or "
            "port=0 for a free one"
        ) from None
    # Connections inherit it. Without it an answer's second packet waits 40 ms for the first to be
    # acknowledged; asyncio sets it only on sockets that it has made itself.
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


if __name__ == "__main__":
    main()
