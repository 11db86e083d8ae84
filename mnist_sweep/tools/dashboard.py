"""Serves optuna-dashboard, without its answers to other sites: `ui` starts this module.

    python -m mnist_sweep.tools.dashboard STORAGE_URL HOST PORT

The program optuna-dashboard answers any Host header, so that a page could read the studies by DNS
rebinding.
"""

import sys
from collections.abc import Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna_dashboard

from mnist_sweep.tools.own_requests import refusal

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    timeout = 30  # seconds to wait for a slow client

    def log_message(self, *_: object) -> None:
        """Print nothing about each request."""


def own_requests_only(app: "WSGIApplication", served: str) -> "WSGIApplication":
    """Refuse what other sites ask of a WSGI application that is served on the address `served`."""

    def answer(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        reason = refusal(environ.get("HTTP_HOST"), environ.get("HTTP_ORIGIN"), served)
        if reason is None:
            return app(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
        return [reason.encode()]

    return answer


def main(storage: str, host: str, port: int) -> None:
    """Serve the studies in `storage` until a signal ends the process."""
    app = own_requests_only(optuna_dashboard.wsgi(storage), host)
    with make_server(host, port, app, _Server, _QuietHandler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
