"""What HTTP alone costs: a server of the same libraries whose handler takes an image and does nothing.

    python benchmarks/empty_server.py

Used by practice.py, which asks it as it asks `coe-vision serve`.
"""

import socket

import uvicorn
from fastapi import FastAPI, Request

app = FastAPI()


@app.post("/predict")
async def nothing(request: Request) -> dict:
    """The number of bytes that came."""
    return {"bytes": len(await request.body())}


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(f"serving nothing at http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        uvicorn.Server(uvicorn.Config(app, http="h11", log_level="error")).run([listening])
