"""The page at /, as people use it: in headless Chromium, with a stand-in for the server."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from browser import DESK, MARKUP, PHONE, WAIT_MS, chromium_page
from page_stand_in import CONTINUATION, PAGE, RUN, SPEECHES, StandIn

pytest.importorskip("playwright")
from playwright.sync_api import Page, expect

EXPECTED_ERRORS = ("Failed to load resource",)  # the browser's own line for a refused request


@pytest.fixture(scope="module")
def server() -> Iterator[StandIn]:
    server = StandIn()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def window() -> Iterator[Page]:
    with chromium_page() as page:
        yield page


@pytest.fixture
def page(window: Page, server: StandIn) -> Iterator[Page]:
    """The page as it is at the first visit; it must ask nobody else and complain of nothing."""
    server.reset()
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
    window.goto(f"{server.address}style.css")  # runs no script, which would store things again
    window.evaluate("localStorage.clear()")
    open_page(window, server)
    yield window
    server.may_go_on.set()
    for event, listener in listeners.items():
        window.remove_listener(event, listener)
    assert [line for line in said if not line.startswith(EXPECTED_ERRORS)] == []
    allowed = (server.address, "data:", "blob:")
    assert [url for url in asked if not url.startswith(allowed)] == []


def open_page(page: Page, server: StandIn) -> None:
    page.goto(server.address)
    expect(page.locator("html[data-ready]")).to_be_attached()


def say(page: Page, text: str) -> None:
    page.get_by_label("Your line").fill(text)
    page.get_by_label("Your line").press("Enter")


def wait_for_the_end(page: Page) -> None:
    expect(page.locator(".growing")).to_have_count(0)


def converse(page: Page, *lines: str) -> None:
    for line in lines:
        say(page, line)
        expect(page.locator("#log .you .speech").last).to_have_text(line)
        wait_for_the_end(page)


def speeches(page: Page) -> list[str]:
    return page.locator("#log .speech").all_text_contents()


def names(page: Page) -> list[str]:
    return page.locator("#log .name").all_text_contents()


@contextmanager
def held(server: StandIn) -> Iterator[None]:
    """Let answers begin, but not go on."""
    server.may_go_on.clear()
    try:
        yield
    finally:
        server.may_go_on.set()


# --------------------------------------------------------------------------------------------------
# Chat


def test_character_is_picked_and_its_answer_streams(page, server):
    field = page.get_by_role("combobox", name="Answered by")
    field.click()
    options = page.get_by_role("listbox", name="Answered by").get_by_role("option")
    expect(options.first).to_have_text("GLOUCESTER904 lines")
    field.fill("ham")
    expect(options).to_have_count(1)
    field.press("ArrowDown")
    field.press("Enter")
    expect(field).to_have_value("HAMLET")

    log = page.get_by_role("log", name="Conversation")
    with held(server):
        say(page, "Who is there?")
        growing = page.locator(".growing")
        expect(growing.locator(".name")).to_have_text("HAMLET")
        # a screen reader waits for the end
        expect(log).to_have_attribute("aria-busy", "true")
        expect(growing.locator(".speech")).to_have_attribute("aria-hidden", "true")
        expect(page.locator("#chat-status")).to_have_text("HAMLET is speaking. Escape stops.")
    wait_for_the_end(page)
    expect(log).to_have_attribute("aria-busy", "false")
    expect(log).to_have_attribute("aria-live", "polite")
    assert speeches(page) == ["Who is there?", SPEECHES[1]]
    expect(page.locator(".turn small")).to_have_count(0)  # it ended by itself
    expect(page.locator("#trouble")).to_be_hidden()
    path, body = server.asked[-1]
    assert path == "/v1/chat/completions"
    assert body["model"] == f"{RUN}:best"
    assert (body["character"], body["user_name"]) == ("HAMLET", "ROMEO")
    assert body["messages"] == [{"role": "user", "name": "ROMEO", "content": "Who is there?"}]
    assert (body["stream"], body["temperature"], body["max_tokens"]) == (True, 0.8, 300)


def test_name_that_nobody_has_may_be_typed_and_known_case_is_found(page):
    field = page.get_by_role("combobox", name="You are")
    field.fill("my self:")
    field.press("Enter")
    expect(field).to_have_value("my self")
    field.fill("juliet")
    page.get_by_label("Your line").focus()
    expect(field).to_have_value("JULIET")
    converse(page, "It is I.")
    assert names(page) == ["JULIET", "JULIET"]


def test_stopped_answer_keeps_its_words_and_frees_the_server(page, server):
    server.speeches.append("A long tale that nobody hears to its end.")
    server.pause_s = 0.05
    say(page, "Tell me all.")
    expect(page.locator(".growing .speech")).to_contain_text("A long")
    with held(server):
        page.get_by_role("button", name="Stop").click()
        wait_for_the_end(page)
        expect(page.locator(".turn.model small")).to_have_text("stopped")
        assert server.left.wait(WAIT_MS / 1000)
    kept = speeches(page)[1]
    assert kept.startswith("A long")
    assert not kept.endswith("end.")
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_retry_adds_a_version_and_arrows_walk(page, server):
    page.locator("#chat summary", has_text="Settings").click()
    page.locator("#chat").get_by_label("Seed").fill("7")
    page.keyboard.press("Escape")
    server.speeches.extend(["first", "second", "third"])
    converse(page, "Well?")
    for text in ("second", "third"):
        page.locator("#log").get_by_role("button", name="Retry").click()
        expect(page.locator("#log .model .speech")).to_have_text(text)
        wait_for_the_end(page)
    assert [body["seed"] for _, body in server.asked] == [7, 8, 9]
    branches = page.locator(".model .branches")
    expect(branches).to_contain_text("3/3")
    back = page.get_by_role("button", name="Previous version")
    back.click()
    expect(page.locator("#log .model .speech")).to_have_text("second")
    expect(back).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#log .model .speech")).to_have_text("first")
    expect(branches).to_contain_text("1/3")
    expect(back).to_be_disabled()
    expect(page.get_by_role("button", name="Next version")).to_be_focused()


def test_edit_branches_and_each_branch_keeps_its_answers(page, server):
    server.speeches.extend(["to one", "to two", "to changed"])
    converse(page, "one", "two")
    page.locator(".you").first.get_by_role("button", name="Edit").click()
    field = page.locator("#log").get_by_label("Your line")
    expect(field).to_have_value("one")
    field.fill("changed")
    field.press("Enter")
    expect(page.locator("#log .speech").last).to_have_text("to changed")
    wait_for_the_end(page)
    assert speeches(page) == ["changed", "to changed"]
    assert [message["content"] for message in server.asked[-1][1]["messages"]] == ["changed"]
    page.get_by_role("button", name="Previous version").click()
    assert speeches(page) == ["one", "to one", "two", "to two"]
    page.get_by_role("button", name="Next version").click()
    assert speeches(page) == ["changed", "to changed"]
    # what is cancelled changes nothing
    page.locator(".you").get_by_role("button", name="Edit").click()
    page.keyboard.type(" again")
    page.keyboard.press("Escape")
    assert speeches(page) == ["changed", "to changed"]


def test_room_talks_by_itself_and_one_joins_while_it_does(page, server):
    page.locator("label", has_text="A room").click()
    expect(page.locator(".chips li")).to_have_count(3)
    guest = page.get_by_role("combobox", name="In the room")
    guest.fill("iago")
    guest.press("Enter")
    page.get_by_role("button", name="Send BENVOLIO out").click()
    page.get_by_role("button", name="Next speaker").click()
    expect(page.locator(".turn.model")).to_have_count(1)
    wait_for_the_end(page)
    assert server.asked[-1][1]["character"] == "auto"
    assert set(server.asked[-1][1]["room"]) == {"JULIET", "NURSE", "IAGO"}

    page.get_by_label("turns").fill("3")
    with held(server):
        page.get_by_role("button", name="Let them talk").click()
        expect(page.locator(".growing")).to_be_visible()
        say(page, "Hear me!")
        expect(page.locator("#chat-status")).to_have_text("Your line comes next.")
    expect(page.locator(".turn")).to_have_count(5)
    expect(page.get_by_role("button", name="Next speaker")).to_be_enabled()
    wait_for_the_end(page)
    assert speeches(page)[2] == "Hear me!"
    assert names(page)[2] == "ROMEO"
    said = names(page)
    assert len(set(said)) >= 4
    # nobody answers himself
    for _, body in server.asked[1:]:
        assert body["messages"][-1]["name"] not in body["room"]


def test_room_that_runs_is_stopped(page, server):
    page.locator("label", has_text="A room").click()
    page.get_by_label("turns").fill("50")
    with held(server):
        page.get_by_role("button", name="Let them talk").click()
        expect(page.locator(".growing")).to_be_visible()
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_role("button", name="Next speaker")).to_be_enabled()
    page.wait_for_timeout(100)
    assert len(server.asked) == 1
    expect(page.locator(".growing")).to_have_count(0)


def test_refusal_is_a_sentence_and_can_be_tried_again(page, server):
    sentences = {
        (429, ""): "The server is busy with other answers. Try again in a moment.",
        (400, f"too long {MARKUP}"): f"The server refused this: too long {MARKUP}",
        (503, "no memory"): "The server failed: no memory",
    }
    server.refusals.extend(sentences)
    say(page, "Is anybody there?")
    for sentence in sentences.values():
        expect(page.locator("#trouble-text")).to_have_text(sentence)
        assert speeches(page) == ["Is anybody there?"]
        page.locator("#trouble").get_by_role("button", name="Try again").click()
    expect(page.locator(".turn.model")).to_have_count(1)
    wait_for_the_end(page)
    expect(page.locator("#trouble")).to_be_hidden()
    assert len(speeches(page)) == 2


def test_api_key_is_asked_for_and_then_sent(page, server):
    server.refusals.append((401, ""))
    say(page, "Let me in.")
    field = page.get_by_role("dialog").get_by_label("API key")
    expect(field).to_be_focused()
    field.fill("secret")
    page.get_by_role("button", name="Use it").click()
    page.locator("#trouble").get_by_role("button", name="Try again").click()
    expect(page.locator(".turn.model")).to_have_count(1)
    wait_for_the_end(page)
    assert server.keys == [None, "Bearer secret"]
    assert "secret" not in page.evaluate("JSON.stringify(localStorage)")


def test_server_that_is_gone_is_said(page):
    page.route("**/v1/chat/completions", lambda route: route.abort())
    say(page, "Is anybody there?")
    sentence = "The server does not answer. Is it still running?"
    expect(page.locator("#trouble-text")).to_have_text(sentence)
    page.unroute("**/v1/chat/completions")


def test_stream_that_breaks_off_is_said_and_its_words_stay(page):
    body = 'data: {"choices": [{"delta": {"name": "JULIET", "content": "half a"}}]}\n\n'
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=200, body=body))
    say(page, "Go on.")
    sentence = "The connection broke off before the answer ended."
    expect(page.locator("#trouble-text")).to_have_text(sentence)
    assert speeches(page) == ["Go on.", "half a"]
    page.unroute("**/v1/chat/completions")


def test_copied_stretches_of_an_answer_are_marked(page, server):
    server.speeches.append("\N{DRAGON} good <night>, sweet")
    converse(page, "Hello.")
    found = {"least": 30, "copied_share": 0.5, "copies": [[[2, 14]]]}
    page.route("**/copied", lambda route: route.fulfill(status=200, json=found))
    page.locator(".model").get_by_role("button", name="Original?").click()
    expect(page.locator(".model .speech mark")).to_have_text("good <night>")
    assert speeches(page)[-1] == "\N{DRAGON} good <night>, sweet"
    expect(page.locator("#chat-status")).to_contain_text("50 % copied")
    page.unroute("**/copied")


def test_conversation_is_copied_and_downloaded_as_the_text_writes_it(page, server):
    server.speeches.append("Good\nnight.")
    converse(page, "Hello.")
    page.locator(".model").get_by_role("button", name="Copy").click()
    expect(page.locator("#chat-status")).to_have_text("Copied.")
    assert page.evaluate("navigator.clipboard.readText()") == "Good\nnight."
    page.locator("#chat summary", has_text="Export").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as text").click()
    text = download.value.path().read_text(encoding="utf-8")
    assert text == "ROMEO:\nHello.\n\nJULIET:\nGood\nnight.\n"


# --------------------------------------------------------------------------------------------------
# What the browser keeps


def test_conversations_are_kept_and_opened_again(page, server):
    server.speeches.extend(["A", "B", "C"])
    converse(page, "one")
    page.locator(".model").get_by_role("button", name="Retry").click()
    expect(page.locator(".model .speech")).to_have_text("B")
    wait_for_the_end(page)
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator("#welcome-title")).to_have_text("JULIET answers.")
    converse(page, "other")
    open_page(page, server)
    assert speeches(page) == ["other", "C"]
    page.get_by_role("button", name="ROMEO: one", exact=True).click()
    assert speeches(page) == ["one", "B"]
    expect(page.locator(".model .branches")).to_contain_text("2/2")
    page.get_by_role("button", name="Forget ROMEO: one").click()
    open_page(page, server)
    assert speeches(page) == ["other", "C"]
    expect(page.get_by_role("button", name="ROMEO: one", exact=True)).to_have_count(0)


def test_damaged_storage_does_not_keep_the_page_from_starting(page, server):
    converse(page, "one")
    for damage in ("{", "null", "[]", '{"id": "a", "tree": {}}'):
        page.goto(f"{server.address}style.css")
        page.evaluate(
            """damage => {
                const names = ["notebook", "settings:chat", "theme", "view", "model", "run"];
                const more = names.map((name) => `chatgot:${name}`);
                for (const key of [...Object.keys(localStorage), ...more]) {
                    localStorage[key] = damage;
                }
            }""",
            damage,
        )
        open_page(page, server)
        assert speeches(page) == []
        expect(page.get_by_role("combobox", name="You are")).to_have_value("ROMEO")
    converse(page, "two")
    assert speeches(page)[0] == "two"


def test_full_storage_drops_the_oldest_conversation_or_is_said(page, server):
    converse(page, "old one")
    page.get_by_role("button", name="New conversation").click()
    refuse = """most => {
        const set = Storage.prototype.setItem;
        Storage.prototype.setItem = function (key, value) {
            const others = Object.keys(this).filter((k) => k.includes("conversation") && k !== key);
            if (key.includes("conversation") && others.length > most) throw new Error("full");
            set.call(this, key, value);
        };
    }"""
    page.evaluate(refuse, 0)
    converse(page, "new one")
    kept = page.evaluate(
        """Object.keys(localStorage).filter((key) => key.includes("conversation"))
            .map((key) => localStorage[key].includes("new one"))"""
    )
    assert kept == [True]
    page.evaluate(refuse, -1)
    say(page, "more")
    expect(page.locator("#chat-status")).to_contain_text("storage is full")
    wait_for_the_end(page)


def test_theme_follows_the_system_until_it_is_switched(page, server):
    def is_dark() -> bool:
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour))) < 3 * 64

    page.emulate_media(color_scheme="dark")
    assert is_dark()
    page.get_by_role("button", name="Switch to light").click()
    assert not is_dark()
    open_page(page, server)
    assert not is_dark()
    page.get_by_role("button", name="Switch to dark").click()
    page.emulate_media(color_scheme="light")
    assert not is_dark()  # it follows the system again


# --------------------------------------------------------------------------------------------------
# Notebook


def open_notebook(page: Page, text: str = "") -> None:
    page.get_by_role("tab", name="Notebook").click()
    if text:
        page.get_by_label("Text", exact=True).fill(text)


def go_on(page: Page) -> None:
    page.get_by_role("button", name="Go on").click()
    expect(page.get_by_role("button", name="Go on")).to_be_visible()


def test_notebook_goes_on_in_colours_and_an_alternative_is_taken(page, server):
    open_notebook(page, "O ")
    go_on(page)
    text = page.get_by_label("Text", exact=True)
    expect(text).to_have_value(f"O {CONTINUATION}")
    path, body = server.asked[-1]
    assert (path, body["prompt"], body["logprobs"]) == ("/v1/completions", "O ", 5)
    kinds = page.eval_on_selector_all("#mirror .token", "spans => spans.map(s => s.className)")
    assert kinds[:6] == [f"token p{kind}" for kind in (0, 1, 2, 3, 4, 0)]
    # not by colour alone
    lines = page.eval_on_selector_all(
        ".legend .token", "spans => spans.map(s => getComputedStyle(s).textDecoration)"
    )
    assert len({re.sub(r"rgba?\([^)]*\)", "", line) for line in lines[1:]}) == 4

    third = page.locator("#mirror .token").nth(2)
    box = third.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    group = page.get_by_role("group", name="“m” had 31%")
    expect(group.get_by_role("button")).to_have_count(5)
    expect(group.get_by_role("button").first).to_have_text("m31%")
    server.speeches.append("x")
    group.get_by_role("button", name="t 1.5%").click()
    expect(text).to_have_value("O cotx")
    expect(page.get_by_role("button", name="Go on")).to_be_visible()
    assert server.asked[-1][1]["prompt"] == "O cot"
    expect(page.locator("#mirror .taken")).to_have_text("t")

    # the continuation, the alternative, and the first continuation are pieces
    undo = page.get_by_role("button", name="Undo")
    for value in ("O cot", f"O {CONTINUATION}", "O "):
        undo.click()
        expect(text).to_have_value(value)
    page.get_by_role("button", name="Redo").click()
    expect(text).to_have_value(f"O {CONTINUATION}")
    expect(page.locator("#mirror .token")).to_have_count(len(CONTINUATION))


def test_text_and_its_coloured_copy_lie_exactly_over_each_other(page):
    open_notebook(page, "x " * 900)
    go_on(page)
    sizes = page.evaluate(
        """["mirror", "page-text"].map(id => {
            const style = getComputedStyle(document.getElementById(id));
            return [style.width, style.height, style.fontSize, style.lineHeight].join();
        })"""
    )
    assert sizes[0] == sizes[1]
    hidden = page.eval_on_selector("#page-text", "area => area.scrollHeight - area.clientHeight")
    assert hidden == 0


def test_typing_into_the_text_keeps_the_colours_of_the_rest(page):
    open_notebook(page, "O ")
    go_on(page)
    text = page.get_by_label("Text", exact=True)
    text.focus()
    text.evaluate("area => area.setSelectionRange(5, 5)")
    page.keyboard.type("ZZ")
    expect(text).to_have_value(f"O com{'ZZ'}{CONTINUATION[3:]}")
    coloured = page.eval_on_selector_all(
        "#mirror .token", "spans => spans.map(s => s.textContent).join('')"
    )
    assert coloured == CONTINUATION
    typed = page.locator("#mirror span:not(.token)").all_text_contents()
    assert typed == ["O ", "ZZ"]


def test_notebook_is_stopped_and_kept(page, server):
    open_notebook(page, "O ")
    server.pause_s = 0.03
    page.get_by_role("button", name="Go on").click()
    expect(page.locator("#mirror .token").nth(2)).to_be_attached()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Go on")).to_be_visible()
    value = page.get_by_label("Text", exact=True).input_value()
    assert f"O {CONTINUATION}".startswith(value)
    assert 5 <= len(value) < len(CONTINUATION)
    open_page(page, server)
    expect(page.get_by_role("tab", name="Notebook")).to_have_attribute("aria-selected", "true")
    expect(page.get_by_label("Text", exact=True)).to_have_value(value)
    expect(page.locator("#mirror .token")).to_have_count(len(value) - 2)


def test_notebook_says_what_went_wrong(page, server):
    open_notebook(page, "O ")
    server.refusals.append((429, ""))
    page.get_by_role("button", name="Go on").click()
    expect(page.locator("#page-trouble")).to_contain_text("busy with other answers")
    go_on(page)
    expect(page.locator("#page-trouble")).to_be_hidden()


# --------------------------------------------------------------------------------------------------
# Watch it learn


def test_watched_run_shows_its_curve_and_its_samples(page, server):
    page.get_by_role("tab", name="Watch it learn").click()
    expect(page.locator("#curve path.train_loss")).to_be_attached()
    expect(page.locator("#curve path.val_loss")).to_be_attached()
    curve = page.get_by_role("img", name=re.compile("val_loss 1.5341 at step 400; lowest .* 400"))
    expect(curve).to_be_visible()
    expect(page.locator("#live")).to_have_text("in progress")
    expect(page.locator("#facts")).to_contain_text("19,133 tokens/s")
    expect(page.locator("#facts")).to_contain_text("bits per byte2.1481 step 400")
    expect(page.locator("#numbers tr").last).to_contain_text("1.53412.1481")
    expect(page.locator("#sample-first")).to_contain_text("Words at 0, of 1.")
    expect(page.locator("#sample-now")).to_contain_text("Words at 400, of 1.")
    slider = page.get_by_role("slider", name="Step")
    slider.focus()
    slider.press("ArrowLeft")
    expect(page.locator("#sample-now")).to_contain_text("Words at 300, of 1.")
    expect(slider).to_have_attribute("aria-valuetext", "step 300")
    page.get_by_role("combobox", name="Prompt").select_option("2")
    expect(page.locator("#sample-now")).to_contain_text("Words at 400, of 2.")

    # the run goes on, and so does what is seen
    server.step = 500
    expect(page.locator("#sample-now")).to_contain_text("Words at 500, of 2.")
    expect(page.locator("#facts")).to_contain_text("step 500")


def test_newest_checkpoint_is_talked_to_and_a_newer_one_is_noted(page, server):
    page.get_by_role("tab", name="Watch it learn").click()
    page.get_by_role("button", name="Talk to the newest checkpoint").click()
    expect(page.get_by_role("tab", name="Chat")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#model")).to_have_value(f"{RUN}:latest")
    converse(page, "one")
    assert server.asked[-1][1]["model"] == f"{RUN}:latest"
    server.step = 600
    page.evaluate("dispatchEvent(new Event('focus'))")  # somebody comes back to the window
    expect(page.locator("#chat-status")).to_have_text(
        "The run has saved step 600: the next answer comes from it."
    )
    converse(page, "two")
    expect(page.locator("#log .note")).to_have_text("a newer checkpoint speaks from here, step 600")


def test_watching_survives_a_server_that_is_gone_for_a_while(page, server):
    page.route("**/watch/**", lambda route: route.abort())
    page.get_by_role("tab", name="Watch it learn").click()
    expect(page.locator("#watch-trouble")).to_contain_text("The server does not answer.")
    page.unroute("**/watch/**")
    expect(page.locator("#curve path.train_loss")).to_be_attached()
    expect(page.locator("#watch-trouble")).to_be_hidden()


# --------------------------------------------------------------------------------------------------
# Text is text


def test_markup_from_anywhere_is_shown_as_text(page, server):
    server.speakers.insert(0, (f"{MARKUP}A", 9999, "JULIET"))
    server.prompt = f"{MARKUP}B"
    open_page(page, server)
    page.get_by_role("combobox", name="Answered by").click()
    page.get_by_role("option", name=MARKUP).click()
    server.speeches.append(f"{MARKUP}C")
    converse(page, f"{MARKUP}D")
    assert names(page) == ["ROMEO", f"{MARKUP}A"]
    assert speeches(page) == [f"{MARKUP}D", f"{MARKUP}C"]
    expect(page.locator("#past-list")).to_contain_text(f"ROMEO: {MARKUP}D")

    open_notebook(page, f"{MARKUP}E")
    server.speeches.append(f"{MARKUP}F")
    go_on(page)
    expect(page.locator("#mirror")).to_contain_text(f"{MARKUP}E{MARKUP}F")
    page.get_by_role("tab", name="Watch it learn").click()
    expect(page.locator("#sample-now b")).to_have_text(f"{MARKUP}B")
    expect(page.get_by_role("combobox", name="Prompt")).to_contain_text(f"{MARKUP}B")
    assert page.locator("img").count() == 0
    assert page.evaluate("window.hacked") is None


def test_files_of_the_page_make_no_html_and_fetch_nothing():
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function"
        r"|DOMParser|\sstyle=|\son\w+=\"|@import|https?://(?!www\.w3\.org/2000/svg)"
    )
    files = sorted(PAGE.iterdir())
    assert {"index.html", "style.css", "app.js"} <= {path.name for path in files}
    for path in files:
        assert forbidden.findall(path.read_text(encoding="utf-8")) == [], path.name


# --------------------------------------------------------------------------------------------------
# Hands, eyes and screens


def press_until(page: Page, key: str, selector: str, most: int = 40) -> None:
    for _ in range(most):
        if page.evaluate("wanted => document.activeElement.matches(wanted)", selector):
            return
        page.keyboard.press(key)
    pytest.fail(f"{selector} was not reached with {key}")


def test_keyboard_alone_is_enough(page, server):
    press_until(page, "Tab", "#tab-chat")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    press_until(page, "Tab", "#line")
    page.keyboard.type("first line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second line")
    with held(server):
        page.keyboard.press("Enter")
        expect(page.locator(".growing")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator(".growing")).to_have_count(0)
    assert speeches(page)[0] == "first line\nsecond line"
    press_until(page, "Shift+Tab", ".you .again")
    page.keyboard.press("Enter")
    page.keyboard.type("!")
    page.keyboard.press("Enter")
    expect(page.locator(".model .speech").last).to_have_text(SPEECHES[2])
    wait_for_the_end(page)
    assert speeches(page)[0] == "first line\nsecond line!"
    press_until(page, "Shift+Tab", "[aria-label='Previous version']")
    page.keyboard.press("Enter")
    assert speeches(page)[0] == "first line\nsecond line"

    press_until(page, "Shift+Tab", "#tab-chat", 60)
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Notebook")).to_be_focused()
    press_until(page, "Tab", "#page-text")
    page.keyboard.type("O ")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_label("Text", exact=True)).to_have_value(f"O {CONTINUATION}")
    expect(page.get_by_role("button", name="Go on")).to_be_visible()
    page.keyboard.press("Control+Home")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Alt+ArrowDown")
    expect(page.locator("#alternatives-list button").first).to_be_focused()
    page.keyboard.press("ArrowDown")
    server.speeches.append("x")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Text", exact=True)).to_have_value("O coex")
    expect(page.get_by_role("button", name="Go on")).to_be_visible()
    page.keyboard.press("Control+z")
    expect(page.get_by_label("Text", exact=True)).to_have_value("O coe")

    press_until(page, "Shift+Tab", "#tab-notebook")
    page.keyboard.press("End")
    expect(page.get_by_role("tabpanel", name="Watch it learn")).to_be_visible()


def test_phone_has_nothing_wider_than_its_screen(page, server):
    page.set_viewport_size(PHONE)

    def fits() -> bool:
        return page.evaluate(
            """() => [document.documentElement, ...document.querySelectorAll("main *")]
                .filter(e => e.checkVisibility() && !e.closest(".unseen, option, #past-list"))
                .every(e => e.getBoundingClientRect().right <= window.innerWidth + 0.5
                    && e.getBoundingClientRect().left >= -0.5)"""
        )

    assert fits()
    server.speeches.append("o" * 300)
    converse(page, "w" * 300)
    assert fits()
    page.locator("#chat summary", has_text="Settings").click()
    assert fits()
    page.keyboard.press("Escape")
    page.locator("label", has_text="A room").click()
    assert fits()
    page.get_by_role("button", name="Conversations").click()
    expect(page.get_by_role("button", name="New conversation")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Conversations")).to_be_focused()
    open_notebook(page, "w" * 300)
    go_on(page)
    page.get_by_role("button", name="Alternatives").click()
    assert fits()
    page.get_by_role("tab", name="Watch it learn").click()
    expect(page.locator("#curve path.train_loss")).to_be_attached()
    assert fits()
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


# --------------------------------------------------------------------------------------------------
# The tree of turns, without the page around it


@pytest.fixture
def modules(window, server) -> Page:
    """A page of the server's origin that can import the page's modules, and does nothing else."""
    window.goto(f"{server.address}style.css")
    return window


def test_tree_keeps_every_branch_and_shows_the_chosen_one(modules):
    shown = modules.evaluate(
        """async () => {
            const t = await import("/tree.js");
            const tree = t.newTree();
            const add = (parent, text) => t.addTurn(tree, parent, {by: "you", name: "A", text}).id;
            const words = () => t.shownPath(tree).map(turn => turn.text).join("");
            const a = add(0, "a"), b = add(a, "b"), c = add(b, "c"), d = add(a, "d");
            const seen = [words()];
            t.walk(tree, d, -1);
            seen.push(words());
            seen.push(t.walk(tree, b, -1) === null ? "none" : "some");
            seen.push(JSON.stringify(t.placeOf(tree, d)));
            t.removeTurn(tree, d);
            seen.push(words(), t.pathTo(tree, c).map(turn => turn.text).join(""));
            return seen;
        }"""
    )
    assert shown == ["ad", "abc", "none", '{"place":2,"count":2}', "abc", "abc"]


def test_tree_that_is_not_whole_is_refused(modules):
    verdicts = modules.evaluate(
        """async () => {
            const t = await import("/tree.js");
            const tree = t.newTree();
            const a = t.addTurn(tree, 0, {by: "you", name: "A", text: "a"}).id;
            const b = t.addTurn(tree, a, {by: "model", name: "B", text: "b"}).id;
            const damages = [
                s => {},
                s => { s.turns[b].children = [a]; },
                s => { s.turns[a].chosen = 1; },
                s => { s.turns[a].chosen = 0.5; },
                s => { delete s.turns[b]; },
                s => { s.turns[b].text = 7; },
                s => { s.turns[b].parent = 0; },
                s => { s.next = 2; },
                s => { s.turns[0] = null; },
                s => { s.turns[a].children = [b, b]; },
            ];
            return damages.map(damage => {
                const copy = structuredClone(tree);
                damage(copy);
                return t.isTree(copy);
            });
        }"""
    )
    assert verdicts == [True] + [False] * 9
