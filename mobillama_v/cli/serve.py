"""``mobillama-v serve``: the HTTP server that OpenAI's clients speak to."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any

import typer

from mobillama_v.cli.options import DeviceOption, EngineOption, UrlsOption
from mobillama_v.cli.serving_options import (
    BytesOption,
    EachOption,
    HostOption,
    ImagesOption,
    LongestOption,
    ModelsOption,
    PixelsOption,
    RootOption,
    RunningOption,
    SecondsOption,
    WaitingOption,
    offered,
    opened,
)
from mobillama_v.demo.limits import Limits
from mobillama_v.errors import ConfigError, MissingExtraError

_KeyOption = Annotated[
    str | None,
    typer.Option(envvar="MOBILLAMA_V_API_KEY", help="What clients must send; better set the variable than the option."),
]


def serve(
    model: ModelsOption = None,
    host: HostOption = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 takes a free one.")] = 8000,
    api_key: _KeyOption = None,
    allow_urls: UrlsOption = False,
    device: DeviceOption = "auto",
    engine: EngineOption = "auto",
    root_path: RootOption = "",
    max_bytes: BytesOption = Limits.max_bytes,
    max_pixels: PixelsOption = Limits.max_pixels,
    max_images: ImagesOption = Limits.max_images,
    max_new_tokens: LongestOption = Limits.max_new_tokens,
    max_seconds: SecondsOption = Limits.max_seconds,
    running: RunningOption = Limits.running,
    waiting: WaitingOption = Limits.waiting,
    waiting_each: EachOption = Limits.waiting_each,
    grace: Annotated[float, typer.Option(min=0, help="Seconds that running answers get to end at shutdown.")] = 10.0,
    forwarded_from: Annotated[
        str, typer.Option(help="Addresses of reverse proxies that may tell who their client is, by commas.")
    ] = "127.0.0.1",
) -> None:
    """Serve a model over HTTP, as OpenAI's clients speak it: /v1/chat/completions and /v1/models.

    SIGTERM and Ctrl-C let running answers end, for a while.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"the server needs {error.name}: pip install 'mobillama-v[serve]'.") from None
    models = offered(model, device, engine)
    from mobillama_v.demo.api import build
    from mobillama_v.demo.bind import address, listen

    limits = Limits(max_bytes, max_pixels, max_images, max_new_tokens, max_seconds, running, waiting, waiting_each)
    if api_key is not None and not api_key.strip():
        raise ConfigError("the API key is empty; give one, or leave it out.")
    sock = listen(host, port)
    service = opened(models, limits)
    app = build(service, api_key=api_key, allow_urls=allow_urls, grace=grace, root_path=root_path)
    config = uvicorn.Config(
        app,
        log_level="warning",
        proxy_headers=True,
        forwarded_allow_ips=forwarded_from,
        timeout_graceful_shutdown=int(grace) + 1,
        timeout_keep_alive=30,
        h11_max_incomplete_event_size=64 * 1024,
    )
    where = address(*sock.getsockname()[:2])
    print(f"Serving {', '.join(service.models)} at {where}/v1 (Ctrl-C ends it)", file=sys.stderr)

    class Server(uvicorn.Server):
        """Closes the service as soon as it is told to end, and not when its connections have ended."""

        async def shutdown(self, sockets: Any = None) -> None:
            closing = asyncio.create_task(asyncio.to_thread(service.close, grace))
            await super().shutdown(sockets)
            await closing

    Server(config).run(sockets=[sock])
