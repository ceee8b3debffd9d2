"""The same model in transformers itself, offline: tokens, logits, texts, the chat template.

transformers is imported once for all tests: that takes seconds.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_models import KINDS, as_plain, loaded_model
from safetensors.torch import load_file, save_file

from chatgot.exchange.plain_forward import plain_logits
from chatgot.exchange.to_transformers import HF
from chatgot.sampling.controls import Controls
from chatgot.sampling.engine import Engine, Request
from chatgot.sampling.loading import LoadedModel
from chatgot.sampling.speeches import Speech, prompt_text

TEXTS = [
    "KING:\nO Romeo — “café señor” 漢字 don’t, 🐉! What  light?\n\nQUEEN:\n",
    "a\r\nb\rc\td\n\n\n   e \n",
    "one\n<|endoftext|>\ntwo <|endoftext|>",
    "\ufeff",
    "\u0085\u2028e\u0301 é 👩\u200d👧 \"'\\{}<>&",
    "do n't , he 's here . Why ? I 'm not !",
]
CHARACTERS = "".join(sorted(set("".join(TEXTS) + ":ABCDEFGHIJKLMNOPQRSTUVWXYZ")))
TOLERANCE = 1e-4  # of logits in fp32; they are up to about 10


@dataclass(frozen=True)
class Exported:
    """A model of ours, the folder that it was written into, and what transformers reads there."""

    ours: LoadedModel
    folder: Path
    theirs: Any
    tokenizer: Any

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text in transformers."""
        return self.tokenizer(text)["input_ids"]


@pytest.fixture(scope="module")
def transformers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setitem(os.environ, "TRANSFORMERS_VERBOSITY", "error")
        import transformers

        transformers.utils.logging.disable_progress_bar()
        yield transformers


@pytest.fixture(scope="module")
def exported(transformers, tmp_path_factory):
    """Return a function that exports a kind of model, once, and reads it with transformers."""
    known: dict[str, Exported] = {}

    def export(kind: str) -> Exported:
        if kind not in known:
            folder = tmp_path_factory.mktemp(kind)
            ours = loaded_model(kind, CHARACTERS, sampling={"temperature": 0.0})
            HF.write(ours, "fp32", folder)
            known[kind] = Exported(ours, folder, *read(transformers, folder))
        return known[kind]

    return export


def read(transformers, folder: Path) -> tuple[Any, Any]:
    """Return the model and the tokenizer of a folder, as a user loads them."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)


def random_ids(length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(1, len(CHARACTERS), (length,), generator=generator)


def difference(one: Exported, ids: torch.Tensor) -> float:
    """Return the largest difference of two logits of a sequence of ids (T,)."""
    with torch.no_grad():
        theirs = one.theirs(input_ids=ids[None]).logits[0]
    return float((theirs - one.ours.model(ids[None])[0][0]).abs().max())


NAMES = {"gpt": "GPT2LMHeadModel", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_ours(kind, exported):
    """Of the whole context, and of a single token."""
    one = exported(kind)
    assert type(one.theirs).__name__ == NAMES[kind.split("_")[0]]
    assert difference(one, random_ids(32)) < TOLERANCE
    assert difference(one, random_ids(1)) < TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_the_plain_forward_pass_gives_the_logits_of_transformers(kind, exported):
    one = exported(kind)
    ids = random_ids(32)
    with torch.no_grad():
        theirs = one.theirs(input_ids=ids[None]).logits[0]
    assert float((plain_logits(as_plain(one.ours.model), ids) - theirs).abs().max()) < TOLERANCE


@pytest.mark.parametrize("kind", ["gpt", "qwen3_grouped", "llama"])
def test_logits_of_a_padded_batch_are_ours(kind, exported):
    one = exported(kind)
    texts = ["KING:\nO", "a", "What  light?\n\nQUEEN:\n"]
    batch = one.tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        theirs = one.theirs(**batch).logits  # (B, T, V)
    for row, text in zip(theirs, texts, strict=True):
        ids = torch.tensor([one.ours.vocabulary.encode(text)])
        ours = one.ours.model(ids)[0][0]
        assert float((row[: len(text)] - ours).abs().max()) < TOLERANCE


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_ours_and_the_text_comes_back(text, exported):
    one = exported("qwen3")
    ids = one.ids(text)
    assert ids == one.ours.vocabulary.encode(text)
    assert one.tokenizer.decode(ids) == text
    assert one.tokenizer.decode(ids, skip_special_tokens=True) == one.ours.vocabulary.decode(ids)


def test_unknown_characters_are_read_as_here(exported):
    one = exported("qwen3")
    known, unknown = one.ours.vocabulary.replace_unknown("so ~ß~")
    assert unknown == "~ß"
    assert one.ids("so ~ß~") == one.ours.vocabulary.encode(known)


def our_greedy(loaded: LoadedModel, prompt: str, n: int) -> str:
    """Return what our engine writes after a prompt."""
    engine = Engine(loaded.model, loaded.vocabulary)
    controls = Controls(temperature=0.0, max_new_tokens=n)
    request = Request(tuple(loaded.vocabulary.encode(prompt)), controls)
    return engine.complete([request])[0].text


@pytest.mark.parametrize("kind", ["gpt", "gpt_tanh", "qwen3_grouped", "llama_grouped"])
def test_greedy_texts_are_ours(kind, exported):
    """The configuration's temperature is 0, so that generate is greedy by itself."""
    one = exported(kind)
    ids = one.tokenizer("KING:\nO", return_tensors="pt")
    written = one.theirs.generate(**ids, max_new_tokens=24)[0, ids["input_ids"].shape[1] :]
    assert one.tokenizer.decode(written, skip_special_tokens=True) == our_greedy(
        one.ours, "KING:\nO", 24
    )


@pytest.mark.parametrize("kind", ["gpt", "qwen3"])
def test_greedy_texts_of_a_padded_batch_are_ours(kind, exported, transformers):
    one = exported(kind)
    tokenizer = transformers.AutoTokenizer.from_pretrained(one.folder, padding_side="left")
    prompts = ["KING:\nO", "a", "What  l"]
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    written = one.theirs.generate(**batch, max_new_tokens=12)[:, batch["input_ids"].shape[1] :]
    texts = tokenizer.batch_decode(written, skip_special_tokens=True)
    assert texts == [our_greedy(one.ours, prompt, 12) for prompt in prompts]


@pytest.mark.parametrize("kind", ["gpt", "qwen3"])
def test_the_pipeline_writes_our_text_up_to_the_context(kind, exported, transformers):
    one = exported(kind)
    write = transformers.pipeline("text-generation", model=str(one.folder))
    prompt = "QUEEN:\n"
    expected = our_greedy(one.ours, prompt, 32 - len(prompt))
    assert write(prompt)[0]["generated_text"] == prompt + expected


def test_without_a_prompt_a_document_begins(exported):
    one = exported("qwen3")
    written = one.theirs.generate(max_new_tokens=12)[0]
    assert written[0] == 0
    assert one.tokenizer.decode(written[1:]) == our_greedy(one.ours, "", 12)


def test_the_chat_template_makes_our_prompt_of_three_speakers(exported):
    one = exported("qwen3")
    messages = [
        {"role": "system", "content": "“A room.”"},
        {"role": "user", "content": "What  light?  \n"},
        {"role": "assistant", "content": "O\n\n  a"},
        {"role": "user", "name": "ROMEO", "content": "<|endoftext|>"},
    ]
    speeches = [
        Speech("", "“A room.”"),
        Speech("QUEEN", "What  light?"),
        Speech("KING", "O\n\n  a"),
        Speech("ROMEO", "<|endoftext|>"),
    ]
    expected = prompt_text(speeches, "KING")
    template = one.tokenizer.apply_chat_template
    assert template(messages, tokenize=False, add_generation_prompt=True) == expected
    assert template(messages, tokenize=False) == prompt_text(speeches, "")
    tokens = template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert tokens == one.ours.vocabulary.encode(expected)


def test_how_to_use_works_as_it_is_written(exported, transformers, capsys):
    one = exported("gpt")
    lines = [line.replace("Who is there?", "O") for line in HF.how_to_use(one.folder)]
    exec("\n".join(lines), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_rounded_weights_are_read_in_their_dtype(dtype, transformers, tmp_path):
    ours = loaded_model("qwen3", CHARACTERS)
    HF.write(ours, dtype, tmp_path)
    named = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path).dtype == named
    load = transformers.AutoModelForCausalLM.from_pretrained
    theirs = load(tmp_path, dtype="float32").eval()
    ids = random_ids(20)
    rounded = HF.as_rounded(ours.model, dtype)(ids[None])[0]
    with torch.no_grad():
        found = theirs(input_ids=ids[None]).logits
    assert float((found - rounded).abs().max()) < TOLERANCE


def transpose(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = tensors[name].T.contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def wrong_rope(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = config["rope_theta"] = 9000.0
    (folder / "config.json").write_text(json.dumps(config))


def shifted_vocabulary(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    *first, last = list(tokenizer["model"]["vocab"])[1:]
    tokens = ["<|endoftext|>", last, *first]
    tokenizer["model"]["vocab"] = {token: i for i, token in enumerate(tokens)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")


@pytest.mark.parametrize("error", [transpose, wrong_rope, shifted_vocabulary])
def test_a_planted_error_shows_in_transformers_too(error, transformers, tmp_path):
    ours = loaded_model("qwen3", CHARACTERS)
    HF.write(ours, "fp32", tmp_path)
    error(tmp_path)
    one = Exported(ours, tmp_path, *read(transformers, tmp_path))
    ids = torch.tensor(one.ids(TEXTS[0][:30]))
    expected = torch.tensor(ours.vocabulary.encode(TEXTS[0][:30]))
    assert not torch.equal(ids, expected) or difference(one, ids) > 10 * TOLERANCE
