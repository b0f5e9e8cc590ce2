"""The source system's server: FastAPI that calls the model inside the request. `python -m benchmarks.inline_server '{"model": …}'`."""

import base64
import json
import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from actors.vision.prompts import build_consult_prompt
from benchmarks.stock_pipelines import AskFunction, open_stock_vlm


def create_app(generate: AskFunction) -> FastAPI:
    app = FastAPI()

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "healthy"}

    @app.post("/predict")
    async def predict(body: dict[str, Any]) -> dict[str, list[str]]:
        predictions = [
            generate(build_consult_prompt(instance["prompt"]), base64.b64decode(instance["image"])) for instance in body["instances"]
        ]
        return {"predictions": predictions}

    return app


def main(model: str, max_new_tokens: int, threads: int) -> None:
    app = create_app(open_stock_vlm(Path(model), max_new_tokens, threads))
    listener = socket.create_server(("127.0.0.1", 0))
    sys.stderr.write(f"inline.url http://127.0.0.1:{listener.getsockname()[1]}\nactors.ready\n")
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run([listener])


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
