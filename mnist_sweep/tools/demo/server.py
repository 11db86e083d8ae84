"""The page's server: prepares pictures and asks the models. A bad request harms no other request."""

import base64
import io
import random
from collections.abc import Mapping
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
from mnist_sweep.tools.trained_model import TrainedModel

LOCAL = ["127.0.0.1", "localhost"]
MAX_BYTES = 10_000_000  # of a picture
PAGE = Path(__file__).with_name("page.html")


def make_app(models: Mapping[str, TrainedModel], data: Dataset, host: str) -> FastAPI:
    """Make the web application.

    Args:
        models: {name to show: model}, all for the same shape and the same classes.
        data: the page offers its test images.
        host: the address that it will serve on.
    """
    app = FastAPI(title="mnist_sweep demo", docs_url=None, redoc_url=None, openapi_url=None)
    if host in LOCAL:  # keeps other pages in the browser out (DNS rebinding)
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOCAL)
    first = next(iter(models.values()))
    shape, is_digit = first.shape, first.is_of_digits
    for model in models.values():  # the first prediction of a model is slow
        model.probabilities(np.zeros((1, *shape), np.uint8))

    @app.get("/", response_class=HTMLResponse)
    def page() -> str:
        return PAGE.read_text()

    @app.get("/models")
    def list_models() -> list[dict[str, Any]]:
        return [{"name": name, "classes": model.classes} for name, model in models.items()]

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        """Classify the picture in the body, in any format that Pillow reads."""
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BYTES:
                raise HTTPException(413, f"more than {MAX_BYTES:,} bytes")
        return await run_in_threadpool(classify, bytes(body))

    def classify(body: bytes) -> dict[str, Any]:
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
