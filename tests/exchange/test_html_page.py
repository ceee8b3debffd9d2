"""The format `html`: one page that is a model. What is written, read back; and in a browser."""

import dataclasses
import json
import math
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import parts
import pytest
import torch
import yaml
from browser import DESK, MARKUP, PHONE, chromium_page
from harness import make_text
from plain_models import KINDS, random_model
from tiny_tokenizers import subwords as imported_subwords

import chatgot
from chatgot.config import Config
from chatgot.data.bpe import train_subwords
from chatgot.data.subwords import PROBE, Subwords
from chatgot.data.vocabulary import END_OF_TEXT, Characters
from chatgot.errors import ExportImpossible, ImportRejected, ProofFailed
from chatgot.exchange.held_out import Window, Windows
from chatgot.exchange.html_bundle import bundle
from chatgot.exchange.html_page import HTML, page_modules, page_of
from chatgot.exchange.html_subwords import SubwordsOfPage, subwords_in_page
from chatgot.exchange.html_weights import BLOCK, from_text, pack, rounded, to_text, unpack
from chatgot.exchange.proof import prove
from chatgot.model.gpt import GPT, model_without_weights
from chatgot.sampling.controls import DRY_LENGTH, Controls
from chatgot.sampling.drawing import Drawer, draw
from chatgot.sampling.engine import Engine, Request, window_start
from chatgot.sampling.loading import LoadedModel
from chatgot.sampling.speakers import Speaker
from chatgot.sampling.speeches import Speech, choose_speaker, prompt_text, speech_lines
from chatgot.sampling.stops import Shown
from chatgot.serving.openai_api import ChatBody, scene_of
from chatgot.shipped import recipes_folder

pytest.importorskip("playwright")
from playwright.sync_api import Page, expect

ALPHABET = "\n !?:<>abcdefghijklmnopABCDEFGHINé“漢🐉"
SPEAKERS = (Speaker("ANN", 30, 0.5, "BEN"), Speaker("BEN", 20, 0.3, "ANN"))
DIALOGUE = "ANN:\nhello ben\n\nBEN:\ngood day ann\n\n"
PROMPT = "ANN:\nhé “a 漢🐉\n\n"
RUN_ID = "tiny_20250102-030405"


def loaded_as(
    model: GPT, speakers: tuple[Speaker, ...] = SPEAKERS, alphabet: str = ALPHABET
) -> LoadedModel:
    """Return a model as a checkpoint would give it."""
    return LoadedModel(
        model=model,
        vocabulary=Characters(alphabet),
        speakers=speakers,
        run_id=RUN_ID,
        step=40,
        val_loss=1.25,
        path=Path("tiny.pt"),
        config=parts.config().model_copy(update={"model": model.cfg}),
        from_scratch=True,
        data_sha256="0123456789abcdef" * 4,
        data_tokens=1000,
        versions={"chatgot": chatgot.__version__},
    )


def random_loaded(kind: str = "qwen3", **keys: object) -> LoadedModel:
    return loaded_as(random_model(kind, len(ALPHABET) + 1, **keys))


def logits(model: GPT, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids]))[0][0]


def text_ids(n: int = 30, seed: int = 0) -> list[int]:
    return [random.Random(seed).randrange(len(ALPHABET) + 1) for _ in range(n)]


def greedy(loaded: LoadedModel, dtype: str, n: int, dry: float = 0) -> str:
    """Return what our engine writes after PROMPT; DRY keeps a random model from one token."""
    engine = Engine(HTML.as_rounded(loaded.model, dtype), loaded.vocabulary, slots=1)
    ids = tuple(loaded.vocabulary.encode(PROMPT))
    allowed = DRY_LENGTH[loaded.vocabulary.kind]
    controls = Controls(
        temperature=0, max_new_tokens=n, dry_multiplier=dry, dry_allowed_length=allowed
    )
    return engine.complete([Request(ids, controls)])[0].text


# --------------------------------------------------------------------------------------------------
# What is written, read back in Python


EACH_KIND = [(kind, "fp16") for kind in KINDS]
EACH_DTYPE = [("qwen3", dtype) for dtype in HTML.dtypes[1:]]


@pytest.mark.parametrize(("kind", "dtype"), EACH_KIND + EACH_DTYPE)
def test_page_read_back_computes_what_the_rounded_model_does(tmp_path, kind, dtype):
    loaded = random_loaded(kind)
    HTML.write(loaded, dtype, tmp_path)
    opened = HTML.open(tmp_path)
    other = HTML.as_rounded(loaded.model, dtype)
    ids = text_ids()
    expected = logits(other, ids)
    assert (opened.logits(torch.tensor(ids)) - expected).abs().max() < 2e-5
    assert (other is loaded.model) == (dtype == "fp32")
    assert torch.equal(expected, logits(loaded.model, ids)) == (dtype == "fp32")
    assert opened.encode(PROMPT) == loaded.vocabulary.encode(PROMPT)
    if loaded.config.model.tie_embeddings:
        assert other.head.weight is other.token_embedding.weight


def transposed(loaded: LoadedModel) -> LoadedModel:
    loaded = dataclasses.replace(loaded, model=HTML.as_rounded(loaded.model, "bf16"))
    weight = loaded.model.blocks[0].attention.proj.weight
    weight.data = weight.data.T.contiguous()
    return loaded


def wrong_rope(loaded: LoadedModel) -> LoadedModel:
    model = loaded.config.model.model_copy(update={"rope_base": 50.0})
    config = loaded.config.model_copy(update={"model": model})
    return dataclasses.replace(loaded, config=config)


def shifted_vocabulary(loaded: LoadedModel) -> LoadedModel:
    shifted = ALPHABET[1:] + ALPHABET[:1]
    return dataclasses.replace(loaded, vocabulary=Characters(shifted))


ERRORS = [transposed, wrong_rope, shifted_vocabulary]


@pytest.mark.parametrize("plant", ERRORS)
def test_planted_error_shows_in_what_is_read_back(tmp_path, plant):
    loaded = random_loaded()
    HTML.write(plant(loaded), "fp32", tmp_path)
    opened = HTML.open(tmp_path)
    ids = loaded.vocabulary.encode(PROMPT)
    found = opened.encode(PROMPT)
    differs = (opened.logits(torch.tensor(found)) - logits(loaded.model, ids)).abs().max() > 1e-2
    assert found != ids or differs


def test_q8_0_has_one_scale_for_each_block_of_a_row():
    matrix = torch.randn(3, 2 * BLOCK + 7, generator=torch.Generator().manual_seed(0))
    matrix[1, BLOCK : 2 * BLOCK] *= 1000  # a large block must not make its neighbours coarse
    matrix[2] = 0
    largest = torch.stack([part.abs().amax(-1) for part in matrix.split(BLOCK, dim=1)], dim=1)
    steps = (largest / 127).repeat_interleave(BLOCK, dim=1)[:, : matrix.shape[1]]
    error = (rounded(matrix, "q8_0") - matrix).abs()
    assert (error <= 0.57 * steps).all()  # half a step, and what fp16 rounds off the scale
    assert torch.equal(rounded(matrix[0], "q8_0"), matrix[0])


def test_each_byte_survives_as_text_of_a_page():
    data = bytes(range(256)) * 3 + b"==\n\r\0<<=@=J=}"
    for shift in range(256):
        text = to_text(data, shift)
        assert not set(text) & set(b"\0\n\r<")
        assert from_text(text, shift) == data


def test_random_weights_take_two_percent_more_than_their_bytes():
    tensors = {"w": torch.randn(500, 512, generator=torch.Generator().manual_seed(0))}
    for dtype in HTML.dtypes:
        packed = pack(tensors, dtype)
        assert len(packed.text) < 1.022 * packed.about["bytes"]
        assert torch.equal(unpack(packed.text, packed.about)["w"], rounded(tensors["w"], dtype))


@pytest.mark.parametrize(("name", "most"), [("chatgot_quick", 5e6), ("chatgot_small_14M", 16e6)])
def test_default_dtype_keeps_a_shipped_model_within_its_size(name, most):
    """The bytes of the weights, with 2% for escapes, and the page around them."""
    config = shipped_config(name)
    characters = 100
    n_tokens = config.data.vocab_size if config.data.tokenizer == "bpe" else characters
    model = model_without_weights(config.model, n_tokens)
    bits = {"fp16": 16, "q8_0": 8 + 16 / BLOCK}[HTML.default_dtype(model)]
    around = len(page_of(random_loaded(), "fp16"))
    assert around + 1.022 * model.parameter_count() * bits / 8 < most


def shipped_config(name: str) -> Config:
    text = (recipes_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    return Config(**yaml.safe_load(text))


def test_weights_that_do_not_fit_are_refused(tmp_path):
    loaded = random_loaded()
    loaded.model.blocks[1].mlp.down.weight.data[0, 0] = 1e5
    with pytest.raises(ExportImpossible, match=r"layers.1.mlp.down.weight has a weight of 100000"):
        HTML.write(loaded, "fp16", tmp_path)
    HTML.write(loaded, "bf16", tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b'id="weights">', b'id="weights">!', "the weights have changed"),
        (b'id="weights">', b'id="heights">', "a page without weights"),
        (b'"version": 1,', b'"version": 9,', "version 9, expected 1"),
        (b'"characters": ', b'"chars": ', "'characters' is missing"),
        (b'"n_head": 2', b'"n_head": 3', "cannot be read back"),
    ],
)
def test_page_that_was_changed_is_refused_in_one_line(tmp_path, old, new, reason):
    content = page_of(random_loaded(), "fp16")
    assert content.count(old) == 1
    path = tmp_path / "page.html"
    path.write_bytes(content.replace(old, new))
    with pytest.raises(ImportRejected, match=re.escape(reason)) as caught:
        HTML.open(tmp_path)
    assert "\n" not in str(caught.value)


def test_folder_without_one_page_is_refused(tmp_path):
    with pytest.raises(ImportRejected, match="found 0"):
        HTML.open(tmp_path)


def test_all_but_the_weights_is_ascii(tmp_path):
    loaded = random_loaded()
    HTML.write(loaded, "fp16", tmp_path)
    content = (tmp_path / f"{RUN_ID}.html").read_bytes()
    start = content.index(b'id="weights">')
    assert content[:start].isascii()
    assert content[content.index(b"<", start) :].isascii()
    assert content.index(b'charset="windows-1252"') < 1024  # browsers look no further


def test_name_of_a_speaker_cannot_end_the_data():
    name = "</script><script>alert(1)</script>"
    loaded = dataclasses.replace(random_loaded(), speakers=(Speaker(name, 3, 1.0, ""),))
    content = page_of(loaded, "fp16").decode("windows-1252", "replace")
    assert name not in content
    about = re.search(r'id="about">(.*?)</script>', content, re.DOTALL)
    assert json.loads(about[1])["speakers"][0]["name"] == name


def test_modules_are_bundled_after_those_that_they_need():
    modules = {
        "a.js": 'import { x as y, f } from "./b.js";\nexport const z = f(y);\n',
        "b.js": "export const x = 20;\nexport function f(n) {\n  return n + 1;\n}\n",
    }
    script = bundle(modules, "a.js")
    assert script.index('modules["b.js"] =') < script.index('modules["a.js"] =')
    assert 'const { x: y, f } = modules["b.js"];' in script
    assert "return { x, f };" in script


@pytest.mark.parametrize(
    "line",
    ['import * as b from "./b.js";', "export default 1;", 'import { a } from "./a.js";'],
)
def test_modules_of_another_form_are_not_bundled(line):
    with pytest.raises((AssertionError, KeyError)):
        bundle({"a.js": f"{line}\n"}, "a.js")


# --------------------------------------------------------------------------------------------------
# In a browser

TALK = """async ({prompt, n, ...more}) => {
    let text = "";
    const request = {prompt, temperature: 0, max_tokens: n, seed: 1, ...more};
    for await (const piece of chatgot.streamText(request)) text += piece.text;
    return text;
}"""
STOPPED = """async () => {
    const stopper = new AbortController();
    let text = "";
    let error = "";
    try {
        const request = {prompt: "a", temperature: 0, max_tokens: 1e8, seed: 1};
        for await (const piece of chatgot.streamText(request, stopper.signal)) {
            text += piece.text;
            stopper.abort();
        }
    } catch (caught) {
        error = caught.name;
    }
    return error;
}"""
LOCAL = ("file:", "blob:", "data:")
NO_WORKER = "Creating a worker"  # what Chromium says when a policy forbids one
NO_FETCH = ("Connecting to", "Fetch API cannot load")
Open = Callable[[bytes], Page]


@pytest.fixture(scope="module")
def window() -> Iterator[Page]:
    with chromium_page() as page:
        yield page


@pytest.fixture
def show(window: Page, tmp_path: Path) -> Iterator[Open]:
    """Open a page from disk; it must ask nobody and complain of nothing."""
    said: list[str] = []
    asked: list[str] = []
    listeners = {
        "console": lambda message: said.append(message.text) if message.type == "error" else None,
        "pageerror": lambda error: said.append(str(error)),
        "request": lambda request: asked.append(request.url),
    }
    for event, listener in listeners.items():
        window.on(event, listener)
    window.set_viewport_size(DESK)

    def show_content(content: bytes) -> Page:
        path = tmp_path / "page.html"
        path.write_bytes(content)
        window.goto(path.as_uri())
        return window

    yield show_content
    window.evaluate("localStorage.clear()")
    for event, listener in listeners.items():
        window.remove_listener(event, listener)
    assert [line for line in said if not line.startswith((NO_WORKER, *NO_FETCH))] == []
    assert asked
    assert [url for url in asked if not url.startswith(LOCAL)] == []


def ready(page: Page) -> Page:
    expect(page.locator("html[data-ready]")).to_be_attached()
    return page


@pytest.mark.parametrize("kind", KINDS)
def test_page_writes_the_engines_text_and_has_its_logits(show, kind):
    """Up to 150 tokens: the context of 32 is outgrown, and its older half forgotten, often."""
    loaded = random_loaded(kind)
    page = ready(show(page_of(loaded, "fp16")))
    expected = greedy(loaded, "fp16", 150, dry=9)
    assert len(expected) > 2 * 32
    assert len(set(expected)) > 5
    assert page.evaluate(TALK, {"prompt": PROMPT, "n": 150, "dry_multiplier": 9}) == expected
    ids = text_ids(32)
    found = torch.tensor(page.evaluate("ids => chatgot.logitsOf(ids)", ids))
    expected_logits = logits(HTML.as_rounded(loaded.model, "fp16"), ids)
    assert (found - expected_logits).abs().max() < 1e-3


@pytest.mark.parametrize("dtype", ["q8_0", "bf16", "fp32"])
def test_page_reads_each_dtype(show, dtype):
    loaded = random_loaded(d_model=36, d_hid=50)  # rows that no block fits
    page = ready(show(page_of(loaded, dtype)))
    assert page.evaluate(TALK, {"prompt": PROMPT, "n": 60}) == greedy(loaded, dtype, 60)
    found = torch.tensor(page.evaluate("ids => chatgot.logitsOf(ids)", text_ids()))
    assert (found - logits(HTML.as_rounded(loaded.model, dtype), text_ids())).abs().max() < 1e-3


@pytest.mark.parametrize("plant", ERRORS)
def test_planted_error_shows_in_what_the_page_writes(show, plant):
    loaded = random_loaded()
    page = ready(show(page_of(plant(loaded), "fp16")))
    assert page.evaluate(TALK, {"prompt": PROMPT, "n": 60}) != greedy(loaded, "fp16", 60)


def test_page_computes_by_itself_where_no_worker_may_run(show):
    loaded = random_loaded()
    content = page_of(loaded, "fp16")
    page = show(content.replace(b"worker-src blob:", b"worker-src 'none'"))
    ready(page)
    assert page.evaluate(TALK, {"prompt": PROMPT, "n": 60}) == greedy(loaded, "fp16", 60)


def test_page_may_ask_nobody(show):
    """The fixture sees requests; the policy forbids them even to a script of the page."""
    page = ready(show(page_of(random_loaded(), "fp16")))
    ask = """async () => {
        try {
            await fetch("https://example.invalid/");
        } catch (error) {
            return error.name;
        }
    }"""
    assert page.evaluate(ask) == "TypeError"
    policy = page.locator("meta[http-equiv]").get_attribute("content")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "http" not in policy


def test_damaged_weights_are_said_instead_of_nonsense(show):
    content = page_of(random_loaded(), "fp16")
    start = content.index(b'id="weights">') + 200
    other = b"a" if content[start : start + 1] != b"a" else b"b"
    page = show(content[:start] + other + content[start + 1 :])
    expect(page.get_by_role("alert")).to_contain_text("weights in this file have changed")


def test_same_seed_writes_the_same_text_and_another_one_another(show):
    page = ready(show(page_of(random_loaded(), "fp16")))
    texts = [
        page.evaluate(TALK, {"prompt": PROMPT, "n": 60, "temperature": 1, "seed": seed})
        for seed in (7, 7, 8)
    ]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_text_that_is_stopped_leaves_the_page_ready_for_the_next(show):
    page = ready(show(page_of(random_loaded("gpt_untied"), "fp16")))
    assert page.evaluate(STOPPED) == "AbortError"
    # a title, since what is evaluated may take forever, and an expectation may not
    write = f"value => {{ ({TALK})(value).then(() => {{ document.title = 'written'; }}); }}"
    page.evaluate(write, {"prompt": PROMPT, "n": 5})
    expect(page).to_have_title("written")


def test_what_was_read_before_another_prompt_is_not_mixed_up_with_it(show):
    loaded = random_loaded("gpt_untied")
    page = ready(show(page_of(loaded, "fp16")))
    expected = greedy(loaded, "fp16", 20)
    for prompt in (PROMPT, PROMPT[:5] + "b" * 12, PROMPT, PROMPT[:9] + "c", PROMPT):
        text = page.evaluate(TALK, {"prompt": prompt, "n": 20})
        assert (text == expected) == (prompt == PROMPT)


# --------------------------------------------------------------------------------------------------
# The chat, with a model that has learned one dialogue by heart


@pytest.fixture(scope="module")
def learned() -> LoadedModel:
    """A model that knows DIALOGUE; 60 steps on eight windows, about a second."""
    vocabulary = Characters("".join(sorted(set(DIALOGUE))))
    keys = {"d_model": 32, "d_hid": 64, "max_seq_length": 64, "init_range": 0.1}
    model = random_model("qwen3", len(vocabulary), **keys).requires_grad_(True)
    ids = torch.tensor(vocabulary.encode(DIALOGUE * 4))
    starts = range(0, 40, 5)
    x = torch.stack([ids[start : start + 64] for start in starts])
    y = torch.stack([ids[start + 1 : start + 65] for start in starts])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = model(x, y)[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3
    return loaded_as(model.requires_grad_(False), alphabet=vocabulary.characters)


def set_slider(page: Page, view: str, name: str, value: str) -> None:
    page.locator(f"#{view} summary", has_text="Settings").click()
    page.locator(f"#{view}-settings").get_by_role("slider", name=name).fill(value)
    page.keyboard.press("Escape")


def say(page: Page, text: str) -> None:
    page.get_by_label("Your line").fill(text)
    page.get_by_label("Your line").press("Enter")


def heard(page: Page) -> list[str]:
    """Return the whole conversation, when the last answer is whole."""
    expect(page.locator(".growing")).to_have_count(0)
    expect(page.locator("#log header small")).to_have_count(0)  # nothing was cut
    names = page.locator("#log .name").all_text_contents()
    texts = page.locator("#log .speech").all_text_contents()
    return [f"{name}: {text}" for name, text in zip(names, texts, strict=True)]


def test_answer_ends_where_the_next_speaker_begins(show, learned):
    page = ready(show(page_of(learned, "fp16")))
    set_slider(page, "chat", "Temperature", "0")
    expect(page.get_by_role("combobox", name="You are")).to_have_value("BEN")
    expect(page.get_by_role("combobox", name="Answered by")).to_have_value("ANN")
    say(page, "good day ann")
    assert heard(page) == ["BEN: good day ann", "ANN: hello ben"]
    page.get_by_role("button", name="Retry").click()
    expect(page.locator(".branches")).to_contain_text("2/2")
    assert heard(page) == ["BEN: good day ann", "ANN: hello ben"]
    page.get_by_role("button", name="New conversation").click()
    assert heard(page) == []


def test_room_speaks_in_the_order_that_the_model_finds_likeliest(show, learned):
    page = ready(show(page_of(learned, "fp16")))
    set_slider(page, "chat", "Temperature", "0")
    page.get_by_text("A room").click()
    page.get_by_role("button", name="Send ANN out").click()
    for name in ("ANE", "ANN"):  # the first letters alone say nothing
        page.get_by_role("combobox", name="In the room").fill(name)
        page.get_by_role("combobox", name="In the room").press("Enter")
    say(page, "good day ann")
    engine = Engine(HTML.as_rounded(learned.model, "fp16"), learned.vocabulary, slots=1)
    speeches = [Speech("BEN", "good day ann")]
    chances = choose_speaker(engine, learned.vocabulary, speeches, ["ANE", "ANN"])
    assert chances[0][0] == "ANN"
    expect(page.locator("#log .name")).to_have_count(2)
    assert heard(page)[1] == "ANN: hello ben"


def test_notebook_goes_on_and_shows_how_likely_each_token_was(show, learned):
    page = ready(show(page_of(learned, "fp16")))
    page.get_by_role("tab", name="Notebook").click()
    set_slider(page, "notebook", "Temperature", "0")
    set_slider(page, "notebook", "Length", "20")
    page.get_by_label("Text", exact=True).fill("ANN:\nhel")
    page.get_by_label("Text", exact=True).press("Control+Enter")
    expect(page.get_by_label("Text", exact=True)).to_have_value("ANN:\nhello ben\n\nBEN:\ngood da")
    expect(page.locator("#mirror .token")).to_have_count(20)
    expect(page.locator("#mirror .p0").first).to_be_attached()


def test_page_says_what_its_model_is(show, learned):
    page = ready(show(page_of(learned, "fp16")))
    count = f"{learned.model.parameter_count():,} parameters"
    for fact in (RUN_ID, count, "step 40", "loss 1.25", "text 01234567", "stays on this machine"):
        expect(page.locator("footer.about")).to_contain_text(fact)


def test_names_and_lines_of_a_model_are_text_and_never_markup(show, learned):
    speakers = (Speaker(MARKUP, 3, 0.5, "ANN"), Speaker("ANN", 3, 0.5, MARKUP))
    page = ready(show(page_of(dataclasses.replace(learned, speakers=speakers), "fp16")))
    say(page, MARKUP)
    assert MARKUP in heard(page)[0]
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0


def test_two_models_do_not_share_what_was_said(show, learned):
    page = ready(show(page_of(learned, "fp16")))
    say(page, "good day ann")
    assert len(heard(page)) == 2
    page.reload()
    assert len(heard(ready(page))) == 2
    page = ready(show(page_of(learned, "bf16")))
    assert heard(page) == []


@pytest.mark.parametrize("view", ["Chat", "Notebook"])
def test_page_is_no_wider_than_a_phone(window, show, learned, view):
    page = ready(show(page_of(learned, "fp16")))
    window.set_viewport_size(PHONE)
    page.get_by_role("tab", name=view).click()
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= PHONE["width"]


# --------------------------------------------------------------------------------------------------
# Each module does what its Python does

PARTS = """
import { Drawer } from "./drawing.js";
import { Engine, windowStart } from "./engine.js";
import { errorFunction } from "./forward.js";
import { promptText, sceneOf } from "./speeches.js";
import { Shown } from "./stops.js";
import { Subwords } from "./subwords.js";
import { Characters } from "./vocabulary.js";
export const all = {
  Drawer, Engine, windowStart, errorFunction, promptText, sceneOf, Shown, Subwords, Characters
};
"""


@pytest.fixture
def in_javascript(window):
    """Run a function of (parts, value) in the browser."""
    script = bundle({**page_modules(), "parts.js": PARTS}, "parts.js")

    def run(function: str, value: object) -> object:
        window.goto("about:blank")
        code = f"{script}\nreturn ({function})(modules['parts.js'].all, value);"
        return window.evaluate(
            "([code, value]) => new Function('value', code)(value)", [code, value]
        )

    return run


def test_same_is_held_back_and_shown_as_in_python(in_javascript):
    dice = random.Random(0)
    pieces = ["\n", "\n\n", "A", "AB:", "A:", "AB", ":", " ", "a b", "é", "BEN:\n", "漢:", "x" * 41]
    texts = ["".join(dice.choices(pieces, k=12)) for _ in range(300)]
    known = ["AB:", "A:", "BEN:"]

    def in_python(text: str) -> list[object]:
        shown = Shown(Controls(stop_before_speaker=frozenset(known)))
        return [[shown.feed(character) for character in text], shown.ended, shown.end()]

    found = in_javascript(
        """({ Shown }, [texts, known]) => texts.map((text) => {
            const shown = new Shown(new Set(known));
            const pieces = [...text].map((character) => shown.feed(character));
            return [pieces, shown.ended, shown.end()];
        })""",
        [texts, known],
    )
    expected = [in_python(text) for text in texts]
    assert found == expected
    assert 50 < sum(ended for _, ended, _ in expected) < 300


CUTS = [
    {},
    {"top_k": 3},
    {"top_p": 0.6},
    {"min_p": 0.2},
    {"top_k": 4, "top_p": 0.8},
    {"temperature": 0.4, "top_p": 0.9},
    {"temperature": 3.0, "min_p": 0.5},
]


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_same_tokens_are_drawn_as_often_as_in_python(in_javascript, cuts):
    scores = [1.0, 0.5, 0.5, 2.0, -1.0, 1.0, float("-inf"), 0.0]
    n = 2000
    row = torch.tensor(scores).numpy()[None].repeat(n, 0)
    drawers = [
        Drawer(Controls(**{"temperature": 1.0, **cuts, "seed": seed}), [], 0) for seed in range(n)
    ]
    expected = draw(row, drawers).tolist()
    found = in_javascript(
        """({ Drawer }, [scores, cuts, n]) => Array.from({ length: n }, (_, seed) => {
            const logits = scores.map((score) => score ?? -Infinity);
            const controls = { temperature: 1, ...cuts, seed };
            return new Drawer(controls, [], {}).draw(logits);
        })""",
        [[score if math.isfinite(score) else None for score in scores], cuts, n],
    )
    assert set(found) == set(expected)
    for token in set(expected):
        # 4.5 standard deviations of the difference of two shares
        assert abs(found.count(token) - expected.count(token)) / n < 4.5 * math.sqrt(0.5 / n)


def test_same_older_half_is_forgotten_as_in_python(in_javascript):
    cases = [(length, context) for length in range(1, 90) for context in range(1, 20)]
    found = in_javascript(
        "({ windowStart }, cases) => cases.map((lengths) => windowStart(...lengths))",
        cases,
    )
    assert found == [window_start(length, context) for length, context in cases]


def test_error_function_is_exact_to_double_precision(in_javascript):
    xs = [i / 37 for i in range(-260, 261)]
    found = in_javascript("({ errorFunction }, xs) => xs.map(errorFunction)", xs)
    assert max(abs(a - math.erf(x)) for a, x in zip(found, xs, strict=True)) < 3e-15


def test_same_ids_are_read_from_a_text_as_in_python(in_javascript):
    dice = random.Random(0)
    pieces = ["<|endoftext|>", "\n", "a", "é", "漢", "🐉", "Z", "\r", "\u2028", "?"]
    texts = ["".join(dice.choices(pieces, k=9)) for _ in range(300)]
    vocabulary = Characters(ALPHABET)
    found = in_javascript(
        """({ Characters }, [characters, texts]) => {
            const vocabulary = new Characters(characters);
            return texts.map((text) => vocabulary.encode(text));
        }""",
        [ALPHABET, texts],
    )
    expected = [vocabulary.encode(vocabulary.replace_unknown(text)[0]) for text in texts]
    assert found == expected
    assert any(0 in ids for ids in expected)


def test_same_prompt_is_made_of_speeches_as_in_python(in_javascript):
    speeches = [("", " A scene. \n"), ("ANN", "hello\n\nthere \n"), ("BEN", "day")]
    found = in_javascript(
        """({ promptText }, speeches) => ["BEN", ""].map((character) =>
            promptText(speeches.map(([name, text]) => ({ name, text })), character))""",
        speeches,
    )
    said = [Speech(*speech) for speech in speeches]
    assert found == [prompt_text(said, "BEN"), prompt_text(said, "")]


def test_same_names_end_an_answer_as_in_python(in_javascript):
    messages = [
        {"role": "system", "content": "A scene."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "name": "DAN", "content": "day"},
        {"role": "user", "name": "EVE", "content": " \n"},
    ]
    known = [{"name": "ANN"}, {"name": "BEN"}]
    for who in (
        {"character": "ANN"},
        {"character": "auto"},
        {"character": "auto", "room": ["CAL"]},
    ):
        request = {"messages": messages, "user_name": "BEN", **who}
        found = in_javascript(
            """({ sceneOf }, [request, known]) => {
                const { speeches, candidates, lines } = sceneOf(request, known);
                return [speeches.map(({ name, text }) => [name, text]), candidates, lines];
            }""",
            [request, known],
        )
        scene = scene_of(ChatBody(**request), ("ANN", "BEN"), "BEN", "")
        said = [[speech.name, speech.text] for speech in scene.speeches]
        assert found[:2] == [said, scene.candidates]
        assert frozenset(found[2]) == speech_lines(scene.names)


@pytest.mark.parametrize("allowed", [12, 2])
def test_same_repeats_are_penalized_as_in_python(in_javascript, allowed):
    """A text that goes round, with tokens that end a repeat and a line that may come again."""
    dice = random.Random(0)
    line = [2, 3, 2, *dice.choices((2, 3, 4), k=12), 5]
    cycle = [1, *line, 1, *dice.choices((2, 3, 4), k=16)]
    prompt = cycle * 2
    rows = [[-1e9, *(dice.random() for _ in range(5))] for _ in range(400)]
    for i, row in enumerate(rows):
        row[cycle[i % len(cycle)]] += 1
    controls = Controls(temperature=0, dry_multiplier=2, dry_allowed_length=allowed)

    def in_python(speaker_lines: frozenset[tuple[int, ...]]) -> list[int]:
        breakers = frozenset({1, 5})
        drawer = Drawer(controls, prompt, 0, breakers=breakers, speaker_lines=speaker_lines)
        return [int(draw(np.array([row], np.float32), [drawer])[0]) for row in rows]

    found = in_javascript(
        """({ Drawer }, [rows, prompt, line, allowedRepeat]) => {
            const controls = { temperature: 0, dry_multiplier: 2 };
            const speakerLines = new Set([line.join()]);
            const breakers = new Set([1, 5]);
            const drawer = new Drawer(controls, prompt, { breakers, speakerLines, allowedRepeat });
            return rows.map((row) => drawer.draw(Float32Array.from(row)));
        }""",
        [rows, prompt, line, allowed],
    )
    assert found == in_python(frozenset({tuple(line)}))
    assert found != in_python(frozenset())  # the line may come again
    assert found != [row.index(max(row)) for row in rows]


# --------------------------------------------------------------------------------------------------
# Subwords of a text's own

MIXED = PROBE.replace(END_OF_TEXT, "the end")  # several scripts, emoji, code, odd white space
ROOM = 9  # rows of the model that are no tokens
MANY = 99  # of everything


@pytest.fixture(scope="module")
def own() -> Subwords:
    return train_subwords([make_text(), MIXED * 3], 700)


@pytest.fixture(scope="module")
def with_subwords(own) -> LoadedModel:
    """A random model of 32 tokens of context; what is no token is often the likeliest."""
    model = random_model("qwen3", len(own) + ROOM)
    model.token_embedding.weight.data[-ROOM:] *= 4
    return dataclasses.replace(loaded_as(model), vocabulary=own)


def odd_texts(n: int) -> list[str]:
    """Return made-up texts of what is hard to cut into words."""
    dice = random.Random(0)
    pieces = [
        *("'S", "'\u017f", "'LL", "'rE", "KING:", "the king", "World", "123", "²", "!!", "/", "?"),
        *(" ", "  ", "\t", "\r\n", "\n", "\n\n", "\x0b", "\x1c", "\u0085", "\ufeff", "\u180e"),
        *("\u2028", "\u3000", "é", "e\u0301", "漢字", "世界", "हिन्दी", "مرحبا", "🏳️‍🌈", "🎭"),
        *(END_OF_TEXT, f"\n{END_OF_TEXT}\n"),
    ]
    return [MIXED, "", *("".join(dice.choices(pieces, k=30)) for _ in range(n))]


ENCODED = """({ Subwords }, [about, texts]) => {
    const vocabulary = new Subwords(about);
    return texts.map((text) => vocabulary.encode(text));
}"""


def test_same_subwords_are_read_from_a_text_as_in_python(in_javascript, own):
    texts = odd_texts(400)
    expected = [own.encode(text) for text in texts]
    about = subwords_in_page(own)
    assert in_javascript(ENCODED, [about, texts]) == expected
    of_page = SubwordsOfPage(about)
    assert [of_page.encode(text) for text in texts] == expected
    assert sum(0 in ids for ids in expected) > MANY
    assert in_javascript(ENCODED, [about, ["a\ud800b"]]) == [own.encode("a?b")]


def test_long_text_is_cut_into_pieces_as_in_python(in_javascript, own):
    """First where a line begins, then within a line that is too long, 🎭 counting as one."""
    text = "the " * 12_000 + "\nKING🎭🎭 " + "the " * 17_000
    (found,) = in_javascript(ENCODED, [subwords_in_page(own), [text]])
    assert found == own.encode(text)
    assert found != own.encode_piece(text)


def test_torn_character_is_held_back_as_in_python(in_javascript, own):
    """Random tokens, most of them parts of characters."""
    dice = random.Random(0)
    ids = [[dice.randrange(1, len(own)) for _ in range(60)] for _ in range(40)]
    ids += [own.encode("\ufeffa🀄b漢"), own.encode("🀄")[:-1]]

    def in_python(some: list[int]) -> list[str]:
        decoder = own.decoder()
        return [*map(decoder.feed, some), decoder.end()]

    found = in_javascript(
        """({ Subwords }, [about, ids]) => {
            const vocabulary = new Subwords(about);
            return ids.map((some) => {
                const decoder = vocabulary.decoder();
                return [...some.map((id) => decoder.feed(id)), decoder.end()];
            });
        }""",
        [subwords_in_page(own), ids],
    )
    assert found == [in_python(some) for some in ids]
    assert found[-1][0] == ""
    assert found[-1][-1] == "\ufffd"


def test_same_subwords_break_a_repeat_and_can_be_cut_as_in_python(in_javascript, own):
    texts = odd_texts(200)
    line_feeds, repeat, whole, cuts = in_javascript(
        """({ Subwords }, [about, texts]) => {
            const vocabulary = new Subwords(about);
            const whole = vocabulary.bytes.map((_, id) => vocabulary.textOf(id));
            const cuts = texts.map((text) => [...text.slice(0, vocabulary.lastCut(text))].length);
            return [[...vocabulary.lineFeeds], vocabulary.allowedRepeat, whole, cuts];
        }""",
        [subwords_in_page(own), texts],
    )
    assert set(line_feeds) == own.line_feeds
    assert len(line_feeds) > 1
    assert repeat == DRY_LENGTH[own.kind]
    assert cuts == [own.last_cut(text) for text in texts]
    texts_of_tokens = [own.decode([token]) for token in range(len(own))]
    expected = [None if "\ufffd" in text else text for text in texts_of_tokens]
    assert whole == expected


def test_page_with_subwords_writes_the_engines_text(show, with_subwords):
    """The context of 32 tokens is outgrown often, and a random model tears characters."""
    page = ready(show(page_of(with_subwords, "fp16")))
    for dry in (3, 9):
        expected = greedy(with_subwords, "fp16", 150, dry)
        asked = {"prompt": PROMPT, "n": 150, "dry_multiplier": dry}
        assert page.evaluate(TALK, asked) == expected
        assert "\ufffd" in expected


WRITTEN = """({ Engine, Subwords }, [about, script, n]) => {
    const vocabulary = new Subwords(about);
    const model = {
        context: 64,
        *read(ids) {
            const logits = new Float32Array(vocabulary.size + 9);
            logits[script[ids.length - 1]] = 1;
            return logits.fill(2, vocabulary.size); // no tokens
        },
    };
    const controls = { temperature: 0, dry_multiplier: 0, max_tokens: n };
    const pieces = new Engine(model, vocabulary).write({ prompt: "", controls, lines: ["KING:"] });
    return [...pieces].map(({ text, finish }) => [text, finish]);
}"""


def test_text_ends_with_what_was_held_back_or_before_a_speaker(in_javascript, own):
    """A model that writes what it is told to."""
    about = subwords_in_page(own)
    torn = own.encode("🀄")[:-1]
    length = in_javascript(WRITTEN, [about, torn, len(torn)])
    assert length == [*(["", ""] for _ in torn), ["\ufffd", "length"]]
    assert in_javascript(WRITTEN, [about, [*torn, 0], 9])[-1] == ["\ufffd", "stop"]
    said = own.encode("No 🀄.\n\nKING:\nthe")
    pieces = in_javascript(WRITTEN, [about, said, MANY])
    assert "".join(text for text, _ in pieces) == "No 🀄."
    assert pieces[-1] == ["", "stop"]
    assert len(pieces) < len(said)


def test_alternatives_to_a_token_are_the_likeliest_whole_characters(show, with_subwords):
    page = ready(show(page_of(with_subwords, "fp32")))
    collect = """async (request) => {
        const all = [];
        for await (const { tokens } of chatgot.streamText(request)) all.push(...tokens);
        return all;
    }"""
    controls = {"temperature": 0, "max_tokens": 20, "dry_multiplier": 9}
    found = page.evaluate(collect, {"prompt": PROMPT, "logprobs": 3, **controls})
    own = with_subwords.vocabulary
    engine = Engine(with_subwords.model, own, slots=1)
    asked = Controls(temperature=0, max_new_tokens=20, dry_multiplier=9, dry_allowed_length=2)
    request = Request(tuple(own.encode(PROMPT)), asked, top_logprobs=len(own))
    expected = engine.complete([request])[0].tokens
    texts = [own.decode([token]) for token in range(len(own))]
    shown = ["" if "\ufffd" in text else text for text in texts]
    for token, other in zip(found, expected, strict=True):
        assert token["text"] == shown[other.id]
        assert token["logprob"] == pytest.approx(other.logprob, abs=1e-4)
        whole = [i for i, _ in other.top if shown[i] or i == own.end_of_text_id][:3]
        assert [one["text"] for one in token["top"]] == [shown[i] for i in whole]
    assert "" in [token["text"] for token in found]


def test_speakers_lines_that_may_come_again_have_their_line_feed(in_javascript, own):
    lines = ["KING:", "a\ud800:", "世界:"]
    found = in_javascript(
        """({ Engine, Subwords, Characters }, [about, characters, lines]) =>
            [new Subwords(about), new Characters(characters)].map((vocabulary) =>
                [...new Engine(null, vocabulary).encodedLines(lines)])""",
        [subwords_in_page(own), "\n:KING", lines],
    )
    expected = [[own.encode("KING:\n"), own.encode("世界:\n")], [[3, 4, 5, 6, 2, 1]]]
    assert found == [[",".join(map(str, ids)) for ids in some] for some in expected]


def test_page_with_subwords_lets_the_likeliest_speak(show, with_subwords):
    page = ready(show(page_of(with_subwords, "fp16")))
    model = HTML.as_rounded(with_subwords.model, "fp16")
    engine = Engine(model, with_subwords.vocabulary, slots=1)
    names = ["ANN", "KING", "世界", "FOOL", "Z"]
    speak = """async ({messages, room}) => {
        const request = {messages, room, character: "auto", user_name: "BEN", max_tokens: 1};
        for await (const { name } of chatgot.streamChat(request)) return name;
    }"""
    chosen = []
    for said in ("hello", "the\n2", "Who speaks next?!", "漢字", "a\n " * 30):
        speeches = [Speech("BEN", said)]
        messages = [{"role": "user", "content": said}]
        found = page.evaluate(speak, {"messages": messages, "room": names})
        chances = choose_speaker(engine, with_subwords.vocabulary, speeches, names)
        assert found == chances[0][0]
        chosen.append(found)
    assert len(set(chosen)) > 1


def test_proof_of_a_page_with_subwords_covers_their_ids(tmp_path, with_subwords, own):
    HTML.write(with_subwords, "fp32", tmp_path)
    held_out = windows_of([MIXED[:40], "KING:\nIt's 🎭\n"], own)
    proof = prove(with_subwords, HTML, "fp32", tmp_path, held_out)
    assert proof.tokens == sum(len(window.ids) for window in held_out.windows)
    (path,) = tmp_path.glob("*.html")
    content = path.read_bytes()
    merges = re.search(rb'"merges": "(\d+ \d+) (\d+ \d+) ', content)
    path.write_bytes(content.replace(merges[0], b'"merges": "%b %b ' % (merges[2], merges[1])))
    with pytest.raises(ProofFailed, match="the written tokenizer gives other ids"):
        prove(with_subwords, HTML, "fp32", tmp_path, held_out)


def windows_of(texts: list[str], vocabulary: Subwords) -> Windows:
    ids = [torch.tensor(vocabulary.encode(text)) for text in texts]
    windows = [Window("a text", text, some[:32]) for text, some in zip(texts, ids, strict=True)]
    return Windows(tuple(windows), "made-up text")


@pytest.mark.parametrize(
    ("old", "new"), [(rb'"merges": "\d+', b'"merges": "9999'), (rb'"bytes": \[\d+', b'"bytes": [1')]
)
def test_page_whose_subwords_were_changed_is_refused(tmp_path, with_subwords, old, new):
    content, count = re.subn(old, new, page_of(with_subwords, "fp16"))
    assert count == 1
    (tmp_path / "page.html").write_bytes(content)
    with pytest.raises(ImportRejected, match="cannot be read back: the subwords") as caught:
        HTML.open(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["gpt2", "qwen2", "llama3", "qwen35"])
def test_page_refuses_the_subwords_of_imported_models(with_subwords, kind):
    loaded = dataclasses.replace(with_subwords, vocabulary=imported_subwords(kind))
    with pytest.raises(ExportImpossible, match="subwords of an imported tokenizer") as caught:
        page_of(loaded, "fp16")
    assert "\n" not in str(caught.value)


def test_subwords_take_little_room_in_a_page(own):
    merges = len(own) - 257
    assert len(json.dumps(subwords_in_page(own))) < 2000 + 8 * merges


def test_page_says_the_loss_in_bits_per_byte(show, with_subwords):
    loaded = dataclasses.replace(with_subwords, tokens_per_byte=0.4)
    page = ready(show(page_of(loaded, "fp16")))
    bits = f"loss 1.25 ({loaded.val_bits_per_byte:.3f} bits per byte)"
    expect(page.locator("footer.about")).to_contain_text(bits)
