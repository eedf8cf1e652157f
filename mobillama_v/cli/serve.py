"""``mobillama-v serve``: an HTTP server for clients of the OpenAI API."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any

import typer

from mobillama_v.cli.options import DeviceOption, EngineOption, OcrOption, UrlsOption
from mobillama_v.cli.serving_options import (
    AllowHostOption,
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
    key_for_all: Annotated[
        bool, typer.Option("--key-for-all", help="Ask for the key at /metrics and /openapi.json, too.")
    ] = False,
    allow_urls: UrlsOption = False,
    allow_host: AllowHostOption = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(help="Let web pages of this origin (https://example.org; * is any) ask. Repeat it for several."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse requests with unknown fields, instead of ignoring the fields.")
    ] = False,
    device: DeviceOption = "auto",
    engine: EngineOption = "auto",
    ocr: OcrOption = False,
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

    The addresses are /v1/chat/completions, /v1/responses, /v1/completions and /v1/models. After Ctrl-C or SIGTERM,
    running answers may end first.
    """
    with needs("the server", "serve"):
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn
    models = model_loaders(model, device, engine, ocr=ocr)
    from mobillama_v.demo.api import Access, build
    from mobillama_v.demo.bind import base_url, bind_socket, served_hosts
    from mobillama_v.demo.workers import memory_bound

    if api_key is not None and not api_key.strip():
        raise ConfigError("the API key is empty; give one, or leave it out.")
    sock = bind_socket(host, port)
    service = open_service(models, limits)
    hosts = served_hosts(sock, host, allow_host or ())
    access = Access(api_key, key_for_all, allow_urls, strict, cors or (), hosts)
    app = build(service, access, grace=grace, root_path=root_path)
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
    print(f"Requests take at most {memory_bound(limits) / 1e9:.1f} GB of memory besides the model", file=sys.stderr)

    class Server(uvicorn.Server):
        """Closes the service as soon as shutdown begins, and not when its connections have ended."""

        async def shutdown(self, sockets: Any = None) -> None:
            closing = asyncio.create_task(asyncio.to_thread(service.close, grace))
            await super().shutdown(sockets)
            await closing

    Server(config).run(sockets=[sock])
