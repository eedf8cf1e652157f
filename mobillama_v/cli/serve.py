"""``mobillama-v serve``: an HTTP server for clients of the OpenAI API."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any

import typer

from mobillama_v.cli.options import DeviceOption, EngineOption, UrlsOption
from mobillama_v.cli.serving_options import (
    HostOption,
    ModelsOption,
    RootOption,
    model_loaders,
    open_service,
    with_limits,
)
from mobillama_v.demo.limits import Limits
from mobillama_v.errors import ConfigError, needs

_KeyOption = Annotated[
    str | None,
    typer.Option(
        envvar="MOBILLAMA_V_API_KEY",
        help="API key that clients must send. Better set the variable: options can be seen by other users.",
    ),
]


@with_limits
def serve(
    model: ModelsOption = None,
    host: HostOption = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the server; 0 takes a free one.")] = 8000,
    api_key: _KeyOption = None,
    allow_urls: UrlsOption = False,
    device: DeviceOption = "auto",
    engine: EngineOption = "auto",
    root_path: RootOption = "",
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds that running answers may take to end at shutdown.")
    ] = 10.0,
    forwarded_from: Annotated[
        str,
        typer.Option(
            help="Addresses of reverse proxies whose word is taken for who the client is, separated by commas."
        ),
    ] = "127.0.0.1",
    limits: Limits = Limits(),  # noqa: B008 (it cannot change)
) -> None:
    """Serve a model over HTTP, for clients of the OpenAI API.

    The addresses are /v1/chat/completions and /v1/models. After Ctrl-C or SIGTERM, running answers may end first.
    """
    with needs("the server", "serve"):
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn
    models = model_loaders(model, device, engine)
    from mobillama_v.demo.api import build
    from mobillama_v.demo.bind import base_url, bind_socket

    if api_key is not None and not api_key.strip():
        raise ConfigError("the API key is empty; give one, or leave it out.")
    sock = bind_socket(host, port)
    service = open_service(models, limits)
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
    where = base_url(*sock.getsockname()[:2])
    print(f"Serving {', '.join(service.models)} at {where}/v1 (Ctrl-C ends it)", file=sys.stderr)

    class Server(uvicorn.Server):
        """Closes the service as soon as shutdown begins, and not when its connections have ended."""

        async def shutdown(self, sockets: Any = None) -> None:
            closing = asyncio.create_task(asyncio.to_thread(service.close, grace))
            await super().shutdown(sockets)
            await closing

    Server(config).run(sockets=[sock])
