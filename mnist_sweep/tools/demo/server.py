"""The page and its answers. One bad request is told so and harms nothing else."""

import base64
import io
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse
from numpy.typing import NDArray
from PIL import Image
from starlette.middleware.trustedhost import TrustedHostMiddleware

from mnist_sweep.common.errors import UserError
from mnist_sweep.data.dataset import Dataset
from mnist_sweep.data.images import read_image
from mnist_sweep.tools.trained_model import Loaded

LOCAL = ["127.0.0.1", "localhost"]
MAX_BYTES = 10_000_000  # of a picture
PAGE = Path(__file__).with_name("page.html")


def make_app(models: Sequence[tuple[str, Loaded]], data: Dataset, host: str) -> FastAPI:
    """`models` by the name that is shown, all of one shape; `data` for its test images."""
    app = FastAPI(title="mnist_sweep demo", docs_url=None, redoc_url=None, openapi_url=None)
    if host in LOCAL:  # other pages of the browser cannot pretend to be this one
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOCAL)
    shape, is_digit = models[0][1].shape, models[0][1].is_of_digits
    for _, model in models:  # a first answer takes longer
        model.probabilities(np.zeros((1, *shape), np.uint8))

    @app.get("/", response_class=HTMLResponse)
    def page() -> str:
        return PAGE.read_text()

    @app.get("/models")
    def about() -> list[dict[str, Any]]:
        return [{"name": name, "classes": model.classes} for name, model in models]

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        """The body is a picture in any format that Pillow reads."""
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BYTES:
                raise HTTPException(413, f"more than {MAX_BYTES:,} bytes")
        return await run_in_threadpool(answer, bytes(body))

    def answer(body: bytes) -> dict[str, Any]:
        try:
            image = read_image(io.BytesIO(body), shape, is_digit=is_digit)
        except UserError as error:
            raise HTTPException(400, str(error)) from error
        answers = [
            {"name": name, "probabilities": model.probabilities(image[None])[0].round(4).tolist()}
            for name, model in models
        ]
        return {"prepared": as_uri(image), "answers": answers}

    @app.get("/sample")
    def sample() -> dict[str, str]:
        """A random test image and what it is."""
        i = random.randrange(len(data.test))
        label = data.classes[int(data.test.labels[i])]
        return {"image": as_uri(data.test.images[i].numpy()), "label": label}

    return app


def as_uri(image: NDArray[np.uint8]) -> str:
    """[C, H, W] as a PNG that stands in a page."""
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0).squeeze()).save(buffer, "png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
