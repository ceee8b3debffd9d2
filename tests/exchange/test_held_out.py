"""The windows that an export is proven on: of the held-out text, else of what the model writes."""

from dataclasses import replace

import exported
import harness
import pytest

from chatgot.data.vocabulary import Characters
from chatgot.exchange import held_out
from chatgot.exchange.held_out import windows_for


def lengths(windows):
    return [len(window.ids) for window in windows.windows]


def test_windows_are_the_start_middle_and_end_of_the_held_out_text(tmp_path):
    loaded = exported.loaded(tmp_path)
    windows = windows_for(loaded)
    text = (tmp_path / exported.TEXT).read_text()
    split = len(text) - int(len(text) * loaded.config.data.test_split)
    places = [text.index(window.text, split) for window in windows.windows]
    assert places[0] == split
    assert places[1] == pytest.approx((split + len(text)) / 2, abs=20)
    assert places[2] + len(windows.windows[2].text) == len(text)
    assert windows.source == "held-out text"
    for window in windows.windows:
        assert window.ids.tolist() == loaded.vocabulary.encode(window.text)


def test_windows_are_as_long_as_the_context_and_the_last_is_shorter(tmp_path):
    assert lengths(windows_for(exported.loaded(tmp_path))) == [32, 32, 21]


def test_windows_of_a_large_context_or_a_large_model_are_limited(tmp_path, monkeypatch):
    loaded = exported.loaded(tmp_path, max_seq_length=128)
    monkeypatch.setattr(held_out, "LONGEST", 100)
    assert lengths(windows_for(loaded)) == [100, 100, 66]
    monkeypatch.setattr(held_out, "LARGE_MODEL", loaded.model.parameter_count() - 1)
    assert lengths(windows_for(loaded)) == [64, 64, 42]


@pytest.mark.parametrize("change", ["gone", "other", "default"])
def test_without_the_text_the_model_writes_the_windows(tmp_path, monkeypatch, change):
    """Another text may have been trained on in part; nothing is downloaded."""
    monkeypatch.chdir(tmp_path)
    loaded = exported.loaded(tmp_path)
    if change == "gone":
        (tmp_path / exported.TEXT).unlink()
    elif change == "other":
        # of the same characters
        (tmp_path / exported.TEXT).write_text(harness.make_text(3000, seed=1))
    else:
        data = loaded.config.data.model_copy(update={"path": None})
        loaded = replace(loaded, config=loaded.config.model_copy(update={"data": data}))
    windows = windows_for(loaded)
    assert windows.source.startswith("text that the model wrote")
    assert lengths(windows) == [32, 32, 21]
    again = windows_for(loaded)
    assert [one.text for one in again.windows] == [one.text for one in windows.windows]
    assert len({one.text for one in windows.windows}) == 3
    assert not (tmp_path / "data").exists()


def test_text_has_the_end_of_text_token_only_as_a_line_of_its_own():
    vocabulary = Characters("\n<>|adefnotx")
    mark = "<|endoftext|>"
    ids = [*vocabulary.encode(f"a{mark}\n"), 0, *vocabulary.encode(f"\nx{mark}d")]
    text = held_out._text_of(ids, vocabulary)
    assert text == f"a\n{mark}\nxd"
    assert vocabulary.encode(text).count(0) == 1


def test_window_whose_ids_change_when_read_again_is_cut_to_its_length():
    class Pairs(Characters):
        """Reads each character as two tokens."""

        def encode(self, text):
            return [token for token in super().encode(text) for _ in range(2)]

    vocabulary = Pairs("abc")
    window = held_out._window("any", [1, 2, 3, 1, 2], vocabulary, 5)
    assert window.text == "ab"
    assert window.ids.tolist() == vocabulary.encode("ab")
