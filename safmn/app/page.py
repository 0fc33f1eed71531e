"""The page itself, with Gradio: upload, choice of weights, slider, downloads."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safmn.app.work import AUTOMATIC, Choice, Outcome, Workshop
from safmn.errors import OptionError, UserError
from safmn.inference.choices import CLEAN_WEIGHTS
from safmn.system.extras import EXTRAS
from safmn.weights import zoo

_HOUR = 3600  # seconds: older uploads and results are deleted, and all of them when the page is closed
_WAITING = 20  # requests in the queue
_FONTS = ["system-ui", "sans-serif"]  # of the visitor's computer: nothing is fetched
_USES = {"clean": "clean images", "real": "photographs that are noisy, blurred or JPEG"}
_CLEAN = (
    "Automatic says which weights it took, and why. Clean images are drawings, renderings, screenshots, "
    "and photographs that were shrunk and never compressed."
)
_CSS = """
footer {display: none !important}
.gradio-container {max-width: 1200px !important; margin: 0 auto !important}
#status p, #status li {font-size: 0.95rem}
"""


def gradio() -> Any:
    """Return the module gradio, with its reports to the outside switched off.

    Raises:
        OptionError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio as module
    except ImportError as error:
        requirement = EXTRAS["app"].packages["gradio"]
        raise OptionError(f"safmn app needs Gradio ({error}): pip install '{requirement}'") from error
    return module


class Page:
    """The page: its parts, its folder of uploads and results, and its server.

    Args:
        weights: files that visitors may choose beside the weights of the package.
        device: see :class:`safmn.Upscaler`.
        max_pixels: the largest accepted image, in input pixels.
        max_megabytes: the largest accepted file.
    """

    def __init__(self, weights: list[str], *, device: str, max_pixels: int, max_megabytes: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="safmn_app_"))
        os.environ["GRADIO_TEMP_DIR"] = str(self.folder / "uploads")  # read by Gradio when it is imported
        self.max_megabytes = max_megabytes
        self.max_pixels = max_pixels
        self.choices = _choices(weights)
        self.workshop = Workshop(self.folder / "uploads" / "results", device=device, max_pixels=max_pixels)
        self._gradio = gradio()
        for name in (CLEAN_WEIGHTS, *weights):
            self.workshop.upscaler(Choice(name))  # a file that cannot be used is refused before the page opens

    def blocks(self, *, where: str) -> Any:
        """Return the parts of the page.

        Args:
            where: a sentence that says where the images go.
        """
        gr = self._gradio
        with gr.Blocks(title="SAFMN", analytics_enabled=False, delete_cache=(_HOUR, _HOUR)) as blocks:
            gr.Markdown(f"# Enlarge images\nSAFMN super-resolution. {where}")
            outcomes = gr.State([])
            limits = f"Images, each up to {self.max_megabytes} MB and {_in_words(self.max_pixels)} pixels"
            with gr.Row():
                with gr.Column(scale=2, min_width=300):
                    files = gr.File(file_count="multiple", label=limits, height=180)
                    weights = gr.Radio(
                        [(label, name) for name, label in self.choices.items()],
                        value=next(iter(self.choices)),
                        label="Weights",
                        info=_CLEAN,
                    )
                    ensemble = gr.Checkbox(label="Average over flips and rotations (8 times the time, a little better)")
                    whole = gr.Checkbox(label="In one piece, without tiles (more memory, same result)")
                    with gr.Row():
                        start = gr.Button("Enlarge", variant="primary", elem_id="start")
                        stop = gr.Button("Stop", elem_id="stop")
                with gr.Column(scale=3, min_width=300):
                    slider = gr.ImageSlider(
                        label="bicubic | SAFMN (move the line; the wheel zooms)",
                        type="filepath",
                        interactive=False,
                        max_height=640,
                        elem_id="slider",
                        buttons=["fullscreen"],
                    )
                    shown = gr.Dropdown([], label="Image", visible=False)
                    results = gr.File(file_count="multiple", label="Download", interactive=False, elem_id="results")
                    status = gr.Markdown(elem_id="status")
            outputs = [outcomes, shown, slider, results, status]

            bar = gr.Progress()

            # Gradio finds the bar by the default value.
            def upscale(files: Any, weights: Any, ensemble: Any, whole: Any, progress: Any = bar) -> Any:
                return self._upscale(files, weights, ensemble, whole, progress)

            running = start.click(
                upscale, [files, weights, ensemble, whole], outputs, concurrency_limit=1, api_visibility="private"
            )
            stop.click(None, cancels=[running])
            shown.input(_pair_of, [shown, outcomes], slider, queue=False, api_visibility="private")
        blocks.queue(max_size=_WAITING)
        return blocks

    def _upscale(self, files: list[str] | None, weights: str, ensemble: bool, whole: bool, progress: Any) -> Any:
        gr = self._gradio
        nothing: tuple[Any, ...] = ([], gr.Dropdown(visible=False), None, None)
        if not files:
            return *nothing, "**Drop an image first.**"
        if weights not in self.choices:
            return *nothing, "**These weights are not offered here.**"
        choice = Choice(weights, bool(ensemble), bool(whole))
        try:
            done = self.workshop.run(files, choice, lambda part, name: progress(part, desc=name))
        except UserError as error:
            return *nothing, f"**{_plain(str(error))}**"
        names = [outcome.name for outcome in done if outcome.pair]
        pairs = [(outcome.name, [str(path) for path in outcome.pair]) for outcome in done if outcome.pair]
        return (
            pairs,
            gr.Dropdown(
                [(name, number) for number, name in enumerate(names)],
                value=0 if names else None,
                visible=len(names) > 1,
            ),
            tuple(pairs[0][1]) if pairs else None,
            [str(outcome.result) for outcome in done if outcome.result] or None,
            _summary(done),
        )

    def serve(self, host: str, port: int | None, *, open_browser: bool) -> None:
        """Serve the page until Ctrl-C.

        Raises:
            OptionError: the port is taken.
        """
        outside = host not in ("127.0.0.1", "localhost", "::1")
        where = (
            "Images are processed on the computer that serves this page."
            if outside
            else "Everything stays on this computer."
        )
        gr = self._gradio
        try:
            self.blocks(where=where).launch(
                server_name=host,
                server_port=port,
                share=False,
                inbrowser=open_browser,
                quiet=True,
                show_error=True,
                max_file_size=f"{self.max_megabytes}mb",
                theme=gr.themes.Base(font=_FONTS, font_mono=["ui-monospace", "monospace"]).set(
                    block_info_text_color="*neutral_600"  # Gradio's own is hard to read on white
                ),
                css=_CSS,
                footer_links=[],
                run_history=False,
                ssr_mode=False,
                pwa=False,
                enable_monitoring=False,
                mcp_server=False,
            )
        except OSError as error:
            raise OptionError(f"--port {port}: {error}. Choose another port.") from error

    def close(self) -> None:
        """Delete all uploads and results."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _in_words(count: int) -> str:
    """Return a count in words.

    >>> _in_words(24_000_000), _in_words(1_500_000), _in_words(20_000)
    ('24 million', '1.5 million', '20,000')
    """
    return f"{count / 1e6:.3g} million" if count >= 1e6 else f"{count:,}"


def _choices(files: list[str]) -> dict[str, str]:
    """Return the weights that the page offers: name -> label."""
    choices = {AUTOMATIC: "Automatic: x2, with weights that suit the image"}
    for name, entry in zoo.entries().items():
        use = _USES["real" if name.endswith("-real") else "clean"]
        choices[name] = f"x{entry.card['scale']}, for {use}"
    return choices | {file: f"{Path(file).name}, a file of the owner of this page" for file in files}


def _pair_of(number: int | None, pairs: list[tuple[str, list[str]]]) -> tuple[str, ...] | None:
    return tuple(pairs[number][1]) if number is not None and number < len(pairs) else None


def _summary(done: list[Outcome]) -> str:
    """Return a list of Markdown with a line for each file; names are shown as they are."""
    lines = []
    for outcome in done:
        mark = "" if outcome.result else "**failed:** "
        text = outcome.text.removeprefix(f"{outcome.name}: ")
        lines.append(f"- {mark}{_plain(outcome.name)}: {_plain(text)}")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Return text in which Markdown and HTML have no meaning."""
    safe = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join("\\" + char if char in "\\`*_{}[]()#+!|~" else char for char in safe).replace("\n", " ")
