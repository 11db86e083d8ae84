"""The page's server: prepares pictures and asks the models. A bad request harms no other request."""

import asyncio
import base64
import io
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse
from numpy.typing import NDArray
from PIL import Image
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from mnist_sweep.common.errors import UserError
from mnist_sweep.data.dataset import Dataset
from mnist_sweep.data.images import read_image
from mnist_sweep.tools.own_requests import refusal
from mnist_sweep.tools.trained_model import TrainedModel

MAX_BYTES = 10_000_000  # of a picture
MAX_CONNECTIONS = 32  # more are answered with 503
CONNECTION_S = 30.0  # a connection is cut after this, whatever it waits for
PAGE = Path(__file__).with_name("page.html")


def make_server(
    app: ASGIApp, host: str, port: int, connection_s: float = CONNECTION_S
) -> uvicorn.Server:
    """Make a server that neither slow nor silent clients can occupy."""

    class Connection(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.loop.call_later(connection_s, transport.abort)

        def send_400_response(self, msg: str) -> None:
            if self.cycle is not None:  # the body breaks the protocol: the application is too late
                self.cycle.disconnected = True
            super().send_400_response(msg)

    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=Connection,
        ws="none",
        proxy_headers=False,
        lifespan="off",
        limit_concurrency=MAX_CONNECTIONS,
        headers=[("Connection", "close")],  # one request each, so that `connection_s` limits it
        log_level="error",
    )
    return uvicorn.Server(config)


class OwnRequests:
    """ASGI middleware that refuses what other sites ask for, see `own_requests`."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        self.app, self.host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        reason = refusal(headers.get("host"), headers.get("origin"), self.host)
        answer = JSONResponse({"detail": reason}, 403) if reason else self.app
        await answer(scope, receive, send)


def make_app(models: Mapping[str, TrainedModel], data: Dataset, host: str) -> FastAPI:
    """Make the web application.

    Args:
        models: {name to show: model}, all for the same shape and the same classes.
        data: the page offers its test images.
        host: the address that it will serve on.
    """
    app = FastAPI(title="mnist_sweep demo", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(OwnRequests, host=host)
    first = next(iter(models.values()))
    shape, is_digit = first.shape, first.is_of_digits
    for model in models.values():  # the first prediction of a model is slow
        model.probabilities(np.zeros((1, *shape), np.uint8))
    one_at_a_time = asyncio.Lock()  # a large picture takes hundreds of MB while it is decoded

    @app.get("/", response_class=HTMLResponse)
    def page() -> str:
        return PAGE.read_text()

    @app.get("/models")
    def list_models() -> list[dict[str, Any]]:
        return [{"name": name, "classes": model.classes} for name, model in models.items()]

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        """Classify the picture in the body, in any format that `read_image` reads."""
        kind = request.headers.get("content-type", "").lower()
        if not kind.startswith("image/") and kind != "application/octet-stream":
            # forms of other sites can only send other types
            expected = "expected image/png, another image/* or application/octet-stream"
            raise HTTPException(415, f"Content-Type {kind}: {expected}")
        body = bytearray()
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise HTTPException(413, f"expected at most {MAX_BYTES:,} bytes")
        except ClientDisconnect as error:  # nobody reads the answer
            raise HTTPException(400, "the picture is incomplete") from error
        async with one_at_a_time:
            if await request.is_disconnected():
                raise HTTPException(400, "the client has gone")
            return await run_in_threadpool(classify, body)

    def classify(body: bytearray) -> dict[str, Any]:
        try:
            image = read_image(io.BytesIO(body), shape, is_digit=is_digit)
        except UserError as error:
            raise HTTPException(400, str(error)) from error
        predictions = [
            {"name": name, "probabilities": model.probabilities(image[None])[0].round(4).tolist()}
            for name, model in models.items()
        ]
        return {"prepared": as_data_uri(image), "predictions": predictions}

    @app.get("/sample")
    def sample() -> dict[str, str]:
        """Return a random test image and its class."""
        i = random.randrange(len(data.test))
        label = data.classes[int(data.test.labels[i])]
        return {"image": as_data_uri(data.test.images[i].numpy()), "label": label}

    return app


def as_data_uri(image: NDArray[np.uint8]) -> str:
    """Encode an image [C, H, W] as the data URI of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0).squeeze()).save(buffer, "png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
