"""GGUF files: what is in them, and that reading them back gives the same model."""

from dataclasses import replace

import gguf
import gguf_models
import plain_models
import pytest
import torch
from gguf_models import SPOILT, TEXT, WIDE, loaded, write

from chatgot.data.vocabulary import END_OF_TEXT, Characters
from chatgot.errors import ExportImpossible, ImportRejected
from chatgot.exchange.byte_level_bpe import CONTROL, letters_of_bytes
from chatgot.exchange.chat_template import jinja_template, ollama_template
from chatgot.exchange.gguf_vocabulary import tokens_in_gguf
from chatgot.exchange.to_gguf import FILE, GGUF

KINDS = list(plain_models.KINDS)
CLOSE = 1e-4  # of two logits; fp32 rounds sums in another order to about 1e-5


def fields_of(folder):
    reader = gguf.GGUFReader(folder / FILE)
    return {name: field.contents() for name, field in reader.fields.items()}


def tensors_of(folder):
    return {tensor.name: tensor for tensor in gguf.GGUFReader(folder / FILE).tensors}


def difference(model, folder, dtype="fp32"):
    """Return the largest difference of two logits on the text, and whether its ids are equal."""
    opened = GGUF.open(folder)
    ids = model.vocabulary.encode(TEXT)
    rounded = GGUF.as_rounded(model.model, dtype)
    with torch.no_grad():
        expected = rounded(torch.tensor([ids]))[0][0]
    found = opened.logits(torch.tensor(ids))
    return float((found - expected).abs().max()), opened.encode(TEXT) == ids


@pytest.mark.parametrize("kind", KINDS)
def test_file_read_back_gives_the_same_logits_and_ids(tmp_path, kind):
    model = loaded(tmp_path, kind)
    folder, _ = write(model, tmp_path)
    largest, same_ids = difference(model, folder)
    assert largest < CLOSE
    assert same_ids


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "q8_0"])
@pytest.mark.parametrize("kind", ["gpt_untied", "qwen3", "llama"])
def test_rounded_weights_read_back_are_those_of_the_rounded_model(tmp_path, kind, dtype):
    model = loaded(tmp_path, kind, **WIDE)
    folder, remarks = write(model, tmp_path, dtype)
    largest, _ = difference(model, folder, dtype)
    assert largest < CLOSE
    assert not [remark for remark in remarks if "q8_0" in remark]
    unrounded, _ = difference(replace(model, model=model.model), folder)
    assert unrounded > CLOSE


def test_rounding_leaves_the_model_itself_alone(tmp_path):
    model = loaded(tmp_path, "gpt", **WIDE).model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rounded = GGUF.as_rounded(model, "q8_0")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert rounded.head.weight is rounded.token_embedding.weight
    assert torch.equal(rounded.position_embedding.weight, model.position_embedding.weight)
    assert GGUF.as_rounded(model, "fp32") is model


def test_rows_that_q8_0_cannot_divide_stay_fp16_and_are_named(tmp_path):
    model = loaded(tmp_path, "qwen3", d_model=32, d_hid=40, n_head=2)
    folder, remarks = write(model, tmp_path, "q8_0")
    kinds = {name: tensor.tensor_type.name for name, tensor in tensors_of(folder).items()}
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert kinds["blk.0.ffn_up.weight"] == kinds["token_embd.weight"] == "Q8_0"
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    named = [remark for remark in remarks if "q8_0" in remark]
    assert len(named) == 1
    assert "blk.*.ffn_down.weight" in named[0]
    assert "ffn_up" not in named[0]
    assert difference(model, folder, "q8_0")[0] < CLOSE


@pytest.mark.parametrize("spoil", SPOILT)
def test_planted_mistake_shows_when_the_file_is_read_back(tmp_path, spoil):
    model = loaded(tmp_path)
    folder, _ = write(model, tmp_path)
    spoil(folder)
    largest, same_ids = difference(model, folder)
    assert largest > CLOSE or not same_ids


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [("gpt", "gpt2"), ("qwen3_grouped", "qwen3"), ("llama_grouped", "llama")],
)
def test_file_names_its_architecture_and_sizes(tmp_path, kind, architecture):
    model = loaded(tmp_path, kind)
    fields = fields_of(write(model, tmp_path)[0])
    assert fields["general.architecture"] == architecture
    assert fields["general.name"] == gguf_models.RUN_ID
    assert fields["general.file_type"] == 0
    assert fields[f"{architecture}.context_length"] == 128
    assert fields[f"{architecture}.vocab_size"] == len(model.vocabulary)
    if kind == "llama_grouped":
        assert fields["llama.rope.dimension_count"] == fields["llama.attention.key_length"] == 6
        assert fields["llama.rope.freq_base"] == 500.0


def test_file_says_nothing_of_the_text_or_of_paths(tmp_path):
    model = loaded(tmp_path)
    folder, _ = write(model, tmp_path)
    for path in folder.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()
        assert b"cache" not in path.read_bytes()


def test_end_of_text_is_a_control_token_that_begins_and_ends_texts(tmp_path):
    fields = fields_of(write(loaded(tmp_path), tmp_path)[0])
    assert fields["tokenizer.ggml.tokens"][0] == END_OF_TEXT
    assert fields["tokenizer.ggml.token_type"][0] == CONTROL
    assert fields["tokenizer.ggml.eos_token_id"] == fields["tokenizer.ggml.bos_token_id"] == 0
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert fields["tokenizer.ggml.pre"] == "qwen2"


def test_each_character_is_one_token_and_merges_stay_within_it():
    tokens = tokens_in_gguf(Characters("aé漢🐉"))
    byte_of = {letter: byte for byte, letter in enumerate(letters_of_bytes())}
    for name, character in zip(tokens.names[1:], "aé漢🐉", strict=True):
        assert bytes(byte_of[letter] for letter in name).decode() == character
    assert len(tokens.merges) == 1 + 2 + 3
    assert len(set(tokens.merges)) == len(tokens.merges)


def test_ascii_alone_has_one_merge_that_no_text_can_use():
    tokens = tokens_in_gguf(Characters("ab"))
    left, right = tokens.merges[0].split(" ")
    byte_of = {letter: byte for byte, letter in enumerate(letters_of_bytes())}
    with pytest.raises(UnicodeDecodeError):
        bytes([byte_of[left], byte_of[right]]).decode()


def test_characters_that_programs_leave_out_are_said():
    some = tokens_in_gguf(Characters("aé漢🐉")).remarks
    assert "do not say so" in some[0]
    assert "漢🐉" in some[1]
    assert len(tokens_in_gguf(Characters("aé")).remarks) == 1


def test_documents_and_their_ends_are_encoded_as_ours(tmp_path):
    model = loaded(tmp_path)
    opened = GGUF.open(write(model, tmp_path)[0])
    text = f"One.\n{END_OF_TEXT}\nTwo.\n{END_OF_TEXT}"
    assert opened.encode(text) == model.vocabulary.encode(text)
    with pytest.raises(KeyError):
        opened.encode("a…b")


def test_modelfile_and_template_are_those_of_the_default_pair(tmp_path):
    model = loaded(tmp_path)
    folder, _ = write(model, tmp_path)
    template = jinja_template("ROMEO", "JULIET")
    assert (folder / "chat_template.jinja").read_text(encoding="utf-8") == template
    assert fields_of(folder)["tokenizer.chat_template"] == template
    said = read_modelfile((folder / "Modelfile").read_text(encoding="utf-8"))
    assert said["FROM"] == [f"./{FILE}"]
    assert said["TEMPLATE"] == [ollama_template("ROMEO", "JULIET")]
    assert said["PARAMETER stop"] == ["\n\n", "\nROMEO:\n", "\nJULIET:\n"]
    assert said["PARAMETER num_ctx"] == ["128"]
    assert said["PARAMETER temperature"] == ["0.8"]
    assert said["PARAMETER repeat_penalty"] == ["1"]


def test_modelfile_takes_the_settings_of_the_run(tmp_path):
    model = loaded(tmp_path)
    sampling = model.config.sampling.model_copy(update={"temperature": 0.5, "top_k": 7})
    config = model.config.model_copy(update={"sampling": sampling})
    folder, _ = write(replace(model, config=config, speakers=()), tmp_path)
    said = read_modelfile((folder / "Modelfile").read_text(encoding="utf-8"))
    assert said["PARAMETER temperature"] == ["0.5"]
    assert said["PARAMETER top_k"] == ["7"]
    assert "PARAMETER stop" not in said


def read_modelfile(text):
    """Return the values of each command, as Ollama reads them."""
    said = {}
    while text:
        command, _, text = text.partition(" ")
        if command.startswith("#"):
            text = text.partition("\n")[2]
            continue
        if command == "PARAMETER":
            key, _, text = text.partition(" ")
            command = f"{command} {key}"
        if text.startswith('"""'):
            value, _, text = text[3:].partition('"""\n')
        else:
            value, _, text = text.partition("\n")
        said.setdefault(command, []).append(value)
    return said


def test_gpt_says_that_llama_cpp_rounds_gelu(tmp_path):
    _, remarks = write(loaded(tmp_path, "gpt"), tmp_path)
    assert any("with tanh" in remark and "1e-3" in remark for remark in remarks)


def test_what_fp16_cannot_hold_is_refused(tmp_path):
    model = loaded(tmp_path)
    model.model.blocks[0].attention.proj.weight[0, 0] = 1e5
    with pytest.raises(ExportImpossible, match="attn_output"):
        write(model, tmp_path, "fp16")


def test_more_layers_than_llama_cpp_reads_are_refused(tmp_path):
    model = loaded(tmp_path)
    model.model.cfg = model.model.cfg.model_copy(update={"n_layers": 513})
    with pytest.raises(ExportImpossible, match="513"):
        write(model, tmp_path)


def test_damaged_file_is_refused_with_one_line(tmp_path):
    folder, _ = write(loaded(tmp_path), tmp_path)
    path = folder / FILE
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ImportRejected) as caught:
        GGUF.open(folder)
    assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(ImportRejected, match="no such file"):
        GGUF.open(folder)


def test_commands_name_the_folder(tmp_path):
    commands = GGUF.how_to_use(tmp_path / "My Model")
    assert f"ollama create my-model -f '{tmp_path}/My Model/Modelfile'" in commands
    assert commands[0].startswith(f"llama-cli -m '{tmp_path}/My Model/model.gguf'")
