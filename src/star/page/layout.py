"""The page itself, in Gradio's words."""

from __future__ import annotations

import random
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from star.page.presets import KNOBS
from star.page.studio import Drawn, Growing, Studio, Wish

NOTHING = "nothing"
SLIDERS: dict[str, dict[str, Any]] = {
    "guidance": {"minimum": 0.0, "maximum": 15.0, "step": 0.1, "label": "Guidance"},
    "top_k": {"minimum": 0, "maximum": 4096, "step": 1, "label": "Top-k (0: off)"},
    "top_p": {"minimum": 0.0, "maximum": 1.0, "step": 0.01, "label": "Top-p (0: off)"},
    "temperature": {"minimum": 0.05, "maximum": 2.0, "step": 0.05, "label": "Temperature"},
}


@dataclass
class Visit:
    """What the page remembers of one visitor.

    Attributes:
        folder: where the pictures lie.
        history: files, the latest first, with what is written below them.
        drawn: the last drawing, for its maps.

    """

    folder: Path | None = None
    history: list[tuple[str, str]] = field(default_factory=list)
    drawn: Drawn | None = None

    def forget(self) -> None:
        """Remove the pictures."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


class Page:
    """Turns clicks into wishes, and drawings into what Gradio shows.

    Args:
        studio: draws.
        folder: where visitors' pictures lie while they visit.

    """

    def __init__(self, studio: Studio, folder: Path) -> None:
        self.studio = studio
        self.folder = folder

    def draw(
        self,
        prompt: str,
        negative_prompt: str,
        seed: float,
        fresh: bool,
        images: float,
        preset: str,
        guidance: float,
        top_k: float,
        top_p: float,
        temperature: float,
        other: str,
        visit: Visit,
    ) -> Iterator[tuple[Any, ...]]:
        """Both galleries, the status, the seed, the history and the visit, after every scale."""
        import gradio as gr

        try:
            number = random.randrange(2**31) if fresh else int(seed)
            knobs = {"guidance": guidance, "top_k": top_k, "top_p": top_p, "temperature": temperature}
            wish = Wish(prompt, negative_prompt, number, int(images), preset, knobs)
            rival = None if other == NOTHING else Wish(prompt, negative_prompt, number, int(images), other)
            first: list[Any] = []
            second: list[Any] = []
            said = ""
            for growing, first in self._follow(wish, visit):
                said = _status(growing, wish)
                yield first, second, said, number, gr.skip(), gr.skip()
            if rival is not None:
                for growing, second in self._follow(rival, visit):
                    said = _status(growing, rival)
                    yield first, second, said, number, gr.skip(), gr.skip()
            yield first, second, said, number, visit.history, visit
        except (ValueError, TypeError, OverflowError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    def _follow(self, wish: Wish, visit: Visit) -> Iterator[tuple[Growing, list[Any]]]:
        """Previews, and behind the last scale files."""
        for growing in self.studio.draw(wish):
            if growing.drawn is None:
                yield growing, growing.previews
                continue
            if visit.folder is None:
                visit.folder = Path(tempfile.mkdtemp(dir=self.folder))
            files = [str(file) for file in self.studio.save(growing.drawn, visit.folder, uuid.uuid4().hex[:12])]
            captions = [f"{wish.prompt} · seed {wish.seed + j} · {wish.preset}" for j in range(wish.images)]
            visit.history = [*zip(files, captions, strict=True), *visit.history]
            for file, _ in visit.history[self.studio.limits.history :]:
                Path(file).unlink(missing_ok=True)
            visit.history = visit.history[: self.studio.limits.history]
            visit.drawn = growing.drawn
            yield growing, files

    def confidence(self, visit: Visit) -> Any:
        """A map of the last drawing's first picture."""
        return self.studio.confidence(_drawn(visit))

    def attention(self, across: float, down: float, visit: Visit) -> Any:
        """A map of the last drawing's first picture."""
        return self.studio.attention(_drawn(visit), across, down)

    def knobs(self, preset: str) -> list[Any]:
        """What the sliders show for a preset; one that it doesn't have can't be moved."""
        import gradio as gr

        return [gr.update(**state) for state in slider_states(self.studio, preset).values()]


def slider_states(studio: Studio, preset: str) -> dict[str, dict[str, Any]]:
    """Range, value and whether it can be moved, of every slider; top-k goes no further than the codebook."""
    size = studio.pipeline.tokenizer.quantizer.codebook_size
    values = studio.presets.knobs(preset)
    ranges = SLIDERS | {"top_k": SLIDERS["top_k"] | {"maximum": size}}
    states = {}
    for knob in KNOBS:
        value = values[knob]
        shown = max(min(value or 0, ranges[knob]["maximum"]), ranges[knob]["minimum"])
        states[knob] = ranges[knob] | {"value": shown, "interactive": value is not None}
    return states


def _drawn(visit: Visit) -> Drawn:
    import gradio as gr

    if visit.drawn is None:
        raise gr.Error("Draw a picture first.", print_exception=False)
    return visit.drawn


def _status(growing: Growing, wish: Wish) -> str:
    if growing.drawn is None:
        return f"scale {growing.scale} of {growing.scales} · {wish.preset}"
    return f"done · seed {wish.seed} · {wish.preset}"


def build(page: Page, *, prompt: str = "", negative_prompt: str = "", seed: int = 0) -> Any:
    """The page as Gradio's `Blocks`, its queue bounded; the rest are the fields' first values."""
    import gradio as gr

    with gr.Blocks(title="STAR", analytics_enabled=False) as blocks:
        visit = gr.State(Visit(), time_to_live=24 * 3600, delete_callback=Visit.forget)
        with gr.Row():
            with gr.Column(scale=2):
                text, *others = _fields(page, prompt, negative_prompt, seed)
                button = gr.Button("Draw", variant="primary", elem_id="draw")
                stop = gr.Button("Stop")
            with gr.Column(scale=3):
                status = gr.Markdown("", elem_id="status")
                with gr.Row():
                    shown = [_gallery("Picture", "picture", columns=2), _gallery("Compared", "compared", columns=2)]
                _maps(page, visit)
                kept = _gallery("History", "history", columns=6, fit_columns=False)
        drawing = gr.on(
            [button.click, text.submit],
            page.draw,
            [text, *others, visit],
            [*shown, status, others[1], kept, visit],
            api_name="draw",
            concurrency_id="models",
            concurrency_limit=1,
            show_progress="minimal",
        )
        stop.click(None, cancels=[drawing])
    return blocks.queue(max_size=page.studio.limits.queue)


def _fields(page: Page, prompt: str, negative_prompt: str, seed: int) -> list[Any]:
    """What a visitor fills in, in the order of `Page.draw`'s arguments."""
    import gradio as gr

    names, limits = page.studio.presets.names, page.studio.limits
    text = gr.Textbox(prompt, label="Prompt", lines=2, max_length=limits.prompt, elem_id="prompt")
    without = gr.Textbox(negative_prompt, label="Negative prompt", max_length=limits.prompt)
    with gr.Row():
        number = gr.Number(seed, label="Seed", precision=0, minimum=0, elem_id="seed")
        fresh = gr.Checkbox(False, label="A new seed each time")
        count = gr.Slider(1, limits.images, value=1, step=1, label="Pictures", visible=limits.images > 1)
    preset = gr.Dropdown(names, value=names[0], label="Sampling preset", elem_id="preset")
    sliders = [gr.Slider(**state) for state in slider_states(page.studio, names[0]).values()]
    other = gr.Dropdown([NOTHING, *names], value=NOTHING, label="Compare with, same seed", elem_id="other")
    preset.change(page.knobs, preset, sliders, queue=False, api_visibility="private")
    return [text, without, number, fresh, count, preset, *sliders, other]


def _gallery(label: str, name: str, **settings: Any) -> Any:
    import gradio as gr

    buttons: list[Any] = ["download", "download_all", "fullscreen"]
    return gr.Gallery(label=label, elem_id=name, format="png", object_fit="contain", buttons=buttons, **settings)


def _maps(page: Page, visit: Any) -> None:
    """What shows how the last drawing came about, on demand."""
    import gradio as gr

    with gr.Accordion("How it came about", open=False, elem_id="maps"):
        gr.Markdown(
            "Of the first picture of the last drawing (of two, the compared one), one map a scale. *Confidence*: how "
            "probable each drawn token was, dark is unsure. *Attention*: where one token of the last scale looked, "
            "brighter is more."
        )
        with gr.Row():
            across = gr.Slider(0, 1, value=0.5, label="Across")
            down = gr.Slider(0, 1, value=0.5, label="Down")
        with gr.Row():
            sure = gr.Button("Confidence", elem_id="confidence")
            looks = gr.Button("Attention from there", elem_id="attention")
        shown = gr.Image(
            label="Map", format="png", interactive=False, elem_id="map", buttons=["download", "fullscreen"]
        )
        shared: dict[str, Any] = {"concurrency_id": "models", "concurrency_limit": 1, "api_visibility": "private"}
        sure.click(page.confidence, visit, shown, **shared)
        looks.click(page.attention, [across, down, visit], shown, **shared)
