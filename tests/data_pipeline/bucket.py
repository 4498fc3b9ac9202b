"""A local server that speaks S3, whose answers can be made to fail; the data on it is moto's."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

KEYS = {
    "AWS_ACCESS_KEY_ID": "one", "AWS_SECRET_ACCESS_KEY": "two", "AWS_DEFAULT_REGION": "us-east-1",
    # The client's own second tries would hide how often we try.
    "AWS_MAX_ATTEMPTS": "1",
}  # fmt: skip


class Server:
    """WSGI: counts requests, and lets `spoil` answer some of them in moto's place.

    `spoil(method, path, number)` returns a status to answer with, "short" for a body that is cut,
    or None; `number` counts requests of the same method and path.
    """

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self.spoil: Callable[[str, str, int], str | None] = lambda method, path, number: None
        self.requests: list[tuple[str, str, str]] = []  # method, path, range asked for

    def __call__(self, environ: dict, start: Callable) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        asked = (method, path, environ.get("HTTP_RANGE", ""))
        number = sum(one[:2] == asked[:2] for one in self.requests)
        self.requests.append(asked)
        fault = self.spoil(method, path, number)
        if fault == "short":
            body = b"".join(self._app(environ, start))
            return [body[: len(body) // 2]]
        if fault:
            start(fault, [("Content-Length", "0")])
            return [b""]
        return self._app(environ, start)


@contextlib.contextmanager
def serving() -> Iterator[tuple[Server, str]]:
    """(the server, its URL)."""
    app = Server()
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield app, f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join()


def client(url: str):
    return boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1",
        aws_access_key_id="one", aws_secret_access_key="two",
    )  # fmt: skip
