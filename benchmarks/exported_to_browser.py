"""Print as JSON how an exported page does in headless Chromium: text, logits, speed.

    python benchmarks/exported_to_browser.py job.json

A side of the part `exports` of scripts/benchmark.py.
"""

import json
import time
from pathlib import Path

import torch
from playwright.sync_api import Page, sync_playwright
from torch import nn

from benchmarks.exported_model import NEW_TOKENS, Ours, largest, logits_of, read_job
from benchmarks.exports import chromium
from benchmarks.script_runs import Figures
from chatgot.exchange.exporting import default_dtype
from chatgot.exchange.html_page import HTML
from chatgot.model.gpt import GPT

HERE = Path(__file__).parent
LOOP_S = 1.0
WAIT_MS = 300_000
WARM_UP = 16  # tokens


def main() -> None:
    """Export a model as a page, open it, compare and measure."""
    torch.set_num_threads(1)  # as many as the page has
    job = read_job()
    ours = Ours(job)
    if ours.vocabulary.kind == "subwords":
        print(json.dumps({"page": "none: pages read characters only"}))
        return
    dtype = default_dtype(HTML, ours.loaded.model)
    (path,) = ours.export(HTML, dtype).glob("*.html")
    model = HTML.as_rounded(ours.loaded.model, dtype)
    with sync_playwright() as playwright:
        # root has no sandbox
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(WAIT_MS)
        figures: Figures = {
            "page_dtype": dtype,
            "page_mb": path.stat().st_size / 1e6,
            "browser": f"Chromium {browser.version}",
        }
        figures |= measured(ours, model, page, path, job.rounds)
        browser.close()
    print(json.dumps(figures))


def measured(ours: Ours, model: GPT, page: Page, path: Path, rounds: int) -> Figures:
    """Return the best of some rounds, in which loop, page and engine take their turns.

    model: ours, with the weights that the page has.
    """
    multiply_adds = (HERE / "multiply_adds.js").read_text(encoding="utf-8")
    write = (HERE / "write_in_page.js").read_text(encoding="utf-8")
    request = {"prompt": ours.prompt, "temperature": 0, "max_tokens": NEW_TOKENS}
    ours.greedy(model, WARM_UP)
    loops = []
    loads = []
    of_page = []
    of_engine = []
    equal = True
    text = ""
    for _ in range(rounds):
        page.goto("about:blank")
        loops.append(page.evaluate(multiply_adds, LOOP_S))
        began = time.perf_counter()
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        loads.append(time.perf_counter() - began)
        page.evaluate(write, {**request, "max_tokens": WARM_UP})
        made = page.evaluate(write, request)
        began = time.perf_counter()
        text = ours.greedy(model, NEW_TOKENS)
        of_engine.append(len(text) / (time.perf_counter() - began))
        of_page.append(len(made["text"]) / made["seconds"])
        equal &= made["text"] == text
    ids = ours.whole_context()
    found = torch.tensor(page.evaluate("ids => chatgot.logitsOf(ids)", ids.tolist()))
    speed = max(of_page)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    matrices = sum(layer.weight.numel() for layer in layers)  # the head's included
    return {
        "page_context_logits": largest(found - logits_of(model, ids)),
        "page_greedy_equal": equal,
        "page_greedy_characters": len(text),
        "page_load_s": min(loads),
        "page_tokens_per_s": speed,
        "page_tokens_per_s_all": [round(rate, 1) for rate in of_page],
        "engine_1_thread_tokens_per_s": max(of_engine),
        "page_over_engine": speed / max(of_engine),
        "page_gmac_per_s": speed * matrices / 1e9,
        "loop_gmac_per_s": max(loops),
        "page_over_loop": speed * matrices / 1e9 / max(loops),
    }


if __name__ == "__main__":
    main()
