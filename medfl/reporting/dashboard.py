"""A local page about a run that is under way: read-only, for this machine only, no script.

It is bound to the loopback address and answers nothing but its one page. A page of another site
cannot read it under a name of its own either: the request has to name this machine.
"""

from __future__ import annotations

import base64
import io
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from medfl.errors import ReportError
from medfl.reporting import han_font
from medfl.reporting.pages import page_environment
from medfl.runs.live_run import LiveRun, epsilon_text, read_live

LOOPBACK = "127.0.0.1"
REFRESH_SECONDS = 3

_COLOURS = ("#005a8c", "#b3400b", "#0b6b4f", "#7a3e9d", "#8a6d00", "#52606b")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def render_live(run: LiveRun) -> str:
    """The page as text."""
    environment = page_environment()
    environment.filters["epsilon"] = epsilon_text
    return environment.get_template("dashboard.html.j2").render(
        run=run, refresh=REFRESH_SECONDS, policy=_POLICY, curves=_curves(run)
    )


def open_dashboard(folder: Path, *, port: int) -> ThreadingHTTPServer:
    """A server of the page; `serve_forever` runs it, and its `server_port` is where.

    Args:
        folder: The run folder.
        port: On the loopback address; 0 for a free one.

    Raises:
        ReportError: If there is no run, or the port is taken.
    """
    read_live(folder)

    class Page(BaseHTTPRequestHandler):
        """One page, made anew for each request."""

        def do_GET(self) -> None:
            """Answer with the page as it is now."""
            if self.path != "/" or not self._is_for_this_machine():
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            try:
                page = render_live(read_live(folder)).encode()
            except ReportError:
                self.send_error(HTTPStatus.SERVICE_UNAVAILABLE)
                return
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(page)))
            self.send_header("Content-Security-Policy", _POLICY)
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(page)

        def _is_for_this_machine(self) -> bool:
            host = self.headers.get("Host", "").rsplit(":", 1)[0]
            return host in (LOOPBACK, "localhost")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Stay quiet: the terminal belongs to the person who watches."""

    try:
        return ThreadingHTTPServer((LOOPBACK, port), Page)
    except OSError as error:
        raise ReportError(
            f"--port: expected a free port, found {port}: {error.strerror}."
        ) from None


def _curves(run: LiveRun) -> str:
    """Epsilon and Dice by round as the address of an SVG image; empty before the first round."""
    if not run.done:
        return ""
    han_font.make_known()  # a hospital's name may be Chinese
    figure = Figure(figsize=(8.6, 3.1), layout="constrained")
    loss, utility = figure.subplots(1, 2)
    for number, (site, values) in enumerate(run.epsilon.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        loss.plot(range(1, len(values) + 1), values, color=colour, linewidth=2, label=site)
    budget = min(site.budget for site in run.sites)
    loss.axhline(budget, color="#a3231b", linestyle=(0, (5, 3)), label="smallest budget")
    loss.set(xlabel="Round", ylabel="Privacy loss so far (epsilon)", ylim=(0, None))
    loss.legend(frameon=False, prop={"family": list(han_font.FAMILIES), "size": 8})
    for number, (region, points) in enumerate(run.dice.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        utility.plot(*zip(*points, strict=True), color=colour, marker="o", label=region)
    utility.set(xlabel="Round", ylabel="Mean Dice", ylim=(0, 1))
    if run.dice:
        utility.legend(frameon=False, fontsize=8)
    else:
        utility.text(
            0.5, 0.5, "no scores leave the sites", ha="center", transform=utility.transAxes
        )
    for axes in (loss, utility):
        axes.set_xlim(0, run.rounds)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
    target = io.BytesIO()
    figure.savefig(target, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(target.getvalue()).decode('ascii')}"
