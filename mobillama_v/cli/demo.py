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

from mobillama_v.cli.options import DeviceOption, EngineOption
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


def demo(
    model: ModelsOption = None,
    host: HostOption = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 takes a free one.")] = 7860,
    share: Annotated[
        bool, typer.Option("--share", help="Give a public address too, through Gradio's servers.")
    ] = False,
    auth: Annotated[
        str | None, typer.Option(envvar="MOBILLAMA_V_AUTH", help="USER:PASSWORD that visitors must give.")
    ] = None,
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
    waiting_each: EachOption = 4,
) -> None:
    """Talk about pictures in a browser.

    What visitors upload is served to nobody else and removed when they leave; Ctrl-C ends the demo.
    """
    login = _login(auth)
    models = offered(model, device, engine)
    with tempfile.TemporaryDirectory(prefix="mobillama-v-demo-") as folder:
        # Gradio reads these when it is imported.
        os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="False")
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        try:
            import gradio
            import prometheus_client  # noqa: F401
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"the demo needs {error.name}: pip install 'mobillama-v[demo]'.") from None
        from mobillama_v.demo.bind import address, listen

        limits = Limits(max_bytes, max_pixels, max_images, max_new_tokens, max_seconds, running, waiting, waiting_each)
        with listen(host, port) as sock:  # only tried: Gradio's error would come after a model was loaded
            port = sock.getsockname()[1]
        service = opened(models, limits)
        page = _launch(gradio, service, Path(folder), host, port, share=share, auth=login, root_path=root_path)
        print(f"Serving {', '.join(service.models)} at {address(host, port)} (Ctrl-C ends it)", file=sys.stderr)
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
    *,
    share: bool,
    auth: tuple[str, str] | None,
    root_path: str,
) -> Any:
    from starlette.middleware import Middleware

    from mobillama_v.demo.middleware import AccessMiddleware
    from mobillama_v.demo.sessions import Sessions
    from mobillama_v.demo.ui import CSS, EXAMPLES, build

    visitors = Sessions(folder, shared=EXAMPLES)
    page = build(service, visitors)
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
        app_kwargs={"middleware": [Middleware(AccessMiddleware, visitors=visitors)]},
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
