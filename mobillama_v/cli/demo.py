"""``mobillama-v demo``: the chat in a browser."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from mobillama_v.cli.options import DeviceOption, EngineOption, OcrOption
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


@with_limits
def demo(
    model: ModelsOption = None,
    host: HostOption = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the server; 0 takes a free one.")] = 7860,
    share: Annotated[
        bool, typer.Option("--share", help="Also give a public address, through Gradio's servers.")
    ] = False,
    auth: Annotated[
        str | None, typer.Option(envvar="MOBILLAMA_V_AUTH", help="USER:PASSWORD that users must enter.")
    ] = None,
    device: DeviceOption = "auto",
    engine: EngineOption = "auto",
    ocr: OcrOption = False,
    root_path: RootOption = "",
    allow_host: AllowHostOption = None,
    limits: Limits = Limits(waiting_each=4),  # noqa: B008 (it cannot change)
) -> None:
    """Chat about pictures in a browser.

    An uploaded picture is shown to nobody else, and deleted when its user leaves. Ctrl-C ends the demo.
    """
    login = _login(auth)
    models = model_loaders(model, device, engine, ocr=ocr)
    with tempfile.TemporaryDirectory(prefix="mobillama-v-demo-") as folder:
        # Gradio reads these when it is imported.
        os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="False")
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        with needs("the demo", "demo"):
            import gradio
            import prometheus_client  # noqa: F401
        from mobillama_v.demo.bind import base_url, bind_socket, served_hosts

        with bind_socket(host, port) as sock:  # only tried: Gradio's error would come after a model was loaded
            port = sock.getsockname()[1]
            # Gradio's public address has a name of its own.
            hosts = None if share else served_hosts(sock, host, allow_host or ())
        service = open_service(models, limits)
        page = _launch(gradio, service, Path(folder), host, port, hosts, share=share, auth=login, root_path=root_path)
        print(f"Serving {', '.join(service.models)} at {base_url(host, port)} (Ctrl-C ends it)", file=sys.stderr)
        if page.share_url:
            print(f"and at {page.share_url}", file=sys.stderr)
        ended = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ended.set())
        ended.wait()
        service.close()
        page.close(verbose=False)


def _launch(
    gradio: Any,
    service: Any,
    folder: Path,
    host: str,
    port: int,
    hosts: frozenset[str] | None,
    *,
    share: bool,
    auth: tuple[str, str] | None,
    root_path: str,
) -> Any:
    from starlette.middleware import Middleware

    from mobillama_v.demo.bind import HostMiddleware
    from mobillama_v.demo.middleware import AccessMiddleware
    from mobillama_v.demo.sessions import Sessions
    from mobillama_v.demo.ui import CSS, EXAMPLES, build

    sessions = Sessions(folder, shared=EXAMPLES, max_bytes=service.limits.max_uploads)
    middleware = [Middleware(AccessMiddleware, sessions=sessions)]
    if hosts is not None:
        middleware.insert(0, Middleware(HostMiddleware, hosts=hosts))
    page = build(service, sessions)
    page.queue(max_size=service.limits.waiting + service.limits.running, default_concurrency_limit=None)
    fonts = ["system-ui", "sans-serif"]  # the theme's own would be fetched from elsewhere
    page.launch(
        server_name=host,
        server_port=port,
        share=share,
        auth=auth,
        root_path=root_path or None,
        prevent_thread_lock=True,
        quiet=True,
        show_error=False,
        enable_monitoring=False,
        ssr_mode=False,
        footer_links=[],
        max_file_size=service.limits.max_bytes,
        allowed_paths=[str(EXAMPLES)],
        theme=gradio.themes.Soft(font=fonts, font_mono=["ui-monospace", "monospace"]),
        css=CSS,
        app_kwargs={"middleware": middleware},
    )
    return page


def _login(text: str | None) -> tuple[str, str] | None:
    """User and password of ``USER:PASSWORD``."""
    if text is None:
        return None
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise ConfigError("--auth must be USER:PASSWORD.")
    return user, password
