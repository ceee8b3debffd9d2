"""The model has the size in its configuration's name, is causal, and the seed sets its weights."""

import math
import re
from pathlib import Path

import parts
import pytest
import torch
import yaml
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from chatgot.config import ModelConfig
from chatgot.model.gpt import GPT, build_model, evaluating, rotate, rotation

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SIZED = sorted(path for path in CONFIGS.rglob("*.yaml") if re.search(r"_\d+M", path.stem))
V = 19


def model_config(**keys) -> ModelConfig:
    return ModelConfig(
        **{"d_model": 16, "n_layers": 2, "n_head": 2, "d_hid": 24, "max_seq_length": 8, **keys}
    )


def model(seed: int = 1, **keys) -> GPT:
    return build_model(model_config(**keys), V, parts.CPU, seed)


def ids(B: int = 2, T: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(seed))


# Size


def test_shipped_configurations_have_a_size_in_their_name():
    assert {re.search(r"_(\d+M)", path.stem)[1] for path in SIZED} == {"4M", "14M", "85M"}


@pytest.mark.parametrize("path", SIZED, ids=lambda path: path.stem)
@pytest.mark.parametrize("vocab_size", [75, 90])
def test_a_configuration_has_the_size_in_its_name_within_3_percent(path, vocab_size):
    """With characters; the embedding of subwords comes on top."""
    said = 1e6 * int(re.search(r"_(\d+)M", path.stem)[1])
    cfg = ModelConfig(**yaml.safe_load(path.read_text(encoding="utf-8"))["model"])
    with torch.device("meta"):  # counts parameters without memory for them
        count = GPT(cfg, vocab_size).parameter_count()
    assert abs(count - said) <= 0.03 * said, count


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_parameter_count_matches_the_formula(tied, bias):
    C = 16
    L = 2
    hidden = 24
    T = 8
    matrices = L * (C * 3 * C + C * C + 2 * C * hidden) + (V + T) * C + (0 if tied else V * C)
    biases = L * (3 * C + C + hidden + C + 2 * C) + C if bias else 0
    vectors = L * 2 * C + C + biases
    assert model(tie_embeddings=tied, bias=bias).parameter_count() == matrices + vectors


def test_the_hidden_width_is_4_times_d_model_by_default():
    assert model(d_hid=None).layers[0].mlp.up.weight.shape == (64, 16)


# What it computes


@pytest.mark.parametrize("tied", [True, False])
def test_fresh_weights_have_the_loss_of_guessing(tied):
    net = build_model(model_config(d_model=64, tie_embeddings=tied), 80, parts.CPU, 3)
    x = torch.randint(0, 80, (32, 8), generator=torch.Generator().manual_seed(1))
    y = torch.randint(0, 80, (32, 8), generator=torch.Generator().manual_seed(2))
    assert abs(net(x, y)[1].item() - math.log(80)) < 0.1


def test_the_loss_is_the_mean_negative_log_probability_of_all_tokens():
    net = model()
    x = ids()
    y = ids(seed=1)
    logits, loss = net(x, y)
    assert logits.shape == (2, 8, V)
    expected = -logits.detach().double().log_softmax(-1).gather(-1, y[..., None]).mean()
    assert abs(loss.item() - expected.item()) < 1e-6  # fp32 against fp64
    assert net(x)[1] is None


@pytest.mark.parametrize("t", range(8))
def test_a_later_token_never_changes_earlier_logits(t):
    net = model(init_range=0.5)
    x = ids()
    other = x.clone()
    other[:, t] = (other[:, t] + 1) % V
    with evaluating(net):
        before = net(x)[0]
        after = net(other)[0]
    assert torch.equal(before[:, :t], after[:, :t])
    for later in range(t, 8):  # and each later one sees it
        assert not torch.equal(before[:, later], after[:, later])


def test_gradients_of_a_tokens_loss_reach_no_later_position():
    net = model(init_range=0.5)
    x = ids(B=1)
    net(x)[0][0, 3].square().sum().backward()
    grad = net.position_embedding.weight.grad
    assert (grad[:4].abs().sum(dim=1) > 0).all()
    assert (grad[4:] == 0).all()


def test_sequences_of_one_batch_do_not_see_each_other():
    net = model()
    x = ids()
    with evaluating(net):
        together = net(x)[0][0]
        alone = net(x[:1])[0][0]
    assert torch.allclose(together, alone, atol=1e-6)  # the batch size may change the order of sums


def test_a_sequence_longer_than_the_context_is_an_error():
    with pytest.raises((IndexError, RuntimeError)):
        model()(ids(T=9))


def test_the_model_computes_the_same_as_a_plain_transcription():
    net = model(init_range=0.3)
    x = ids()
    state = {name: tensor.double() for name, tensor in net.state_dict().items()}
    with evaluating(net):
        found = net(x)[0]
    h = state["token_embedding.weight"][x] + state["position_embedding.weight"][torch.arange(8)]
    mask = torch.ones(8, 8, dtype=torch.bool).triu(1)
    for i in range(2):

        def linear(name, value, i=i):
            return value @ state[f"layers.{i}.{name}.weight"].T + state[f"layers.{i}.{name}.bias"]

        def norm(name, value):
            centred = value - value.mean(-1, keepdim=True)
            scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

        q, k, v = linear("attention.qkv", norm(f"layers.{i}.norm_attention", h)).split(16, dim=-1)
        heads = []
        for part in (slice(0, 8), slice(8, 16)):
            scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(8)
            heads.append(scores.masked_fill(mask, -torch.inf).softmax(-1) @ v[..., part])
        h = h + linear("attention.proj", torch.cat(heads, dim=-1))
        hidden = linear("mlp.up", norm(f"layers.{i}.norm_mlp", h))
        h = h + linear("mlp.down", hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))))
    expected = norm("norm", h) @ state["head.weight"].T
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()  # fp32 against fp64


@pytest.mark.parametrize(
    "keys",
    [
        {"architecture": "gpt"},
        {"architecture": "modern"},
        {"architecture": "modern", "n_kv_head": 2, "head_dim": 10},
    ],
    ids=["gpt", "modern", "grouped"],
)
def test_flops_per_token_equal_those_that_torch_counts(keys):
    """Torch counts attention to all tokens; causal attention needs half of that."""
    net = model(n_layers=3, d_model=32, n_head=4, d_hid=40, max_seq_length=16, **keys)
    x = ids(B=2, T=16)
    # MATH: products of whole matrices
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        net(x, x)[1].backward()
    by_operation = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    attention = by_operation.pop("aten.bmm")
    all_pairs = 12 * 3 * 4 * keys.get("head_dim", 8) * 16 * x.numel()
    assert attention == all_pairs  # all pairs of tokens: twice what causal attention needs
    counted = (sum(by_operation.values()) + attention / 2) / x.numel()
    assert net.flops_per_token() == counted  # exactly: both count only matrix products


# The modern architecture


def modern(**keys) -> GPT:
    return model(architecture="modern", **{"init_range": 0.3, **keys})


HEADS = {
    "as many keys as queries": {},
    "two heads of keys": {"n_kv_head": 2},
    "one head of keys": {"n_kv_head": 1},
    "wide heads": {"head_dim": 12},
    "narrow heads": {"head_dim": 2},
    "another base": {"rope_base": 50.0},
    "no norms": {"qk_norm": False},
    "all together": {"n_kv_head": 2, "head_dim": 6, "rope_base": 50.0, "qk_norm": False},
}
heads = pytest.mark.parametrize("keys", HEADS.values(), ids=HEADS.keys())


@heads
@pytest.mark.parametrize("kernel", ["sdpa", "products"])
def test_a_modern_model_computes_the_same_as_a_transcription_of_qwen3(kernel, keys):
    """Each head is normalised, then its halves are rotated; H / G query heads share one key head.

    Source: Qwen3, arXiv:2505.09388, and the layout of its weights as published.
    """
    net = modern(d_model=32, n_head=4, **keys)
    x = ids()
    H = 4
    G = keys.get("n_kv_head", 4)
    D = keys.get("head_dim", 8)
    base = keys.get("rope_base", 10000)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() == 1:  # give the norms weights other than 1
                parameter.copy_(1 + 0.5 * torch.randn(parameter.shape, generator=generator))
    net.use_attention(kernel)
    w = {name: tensor.double() for name, tensor in net.state_dict().items()}
    with evaluating(net):
        found = net(x)[0]

    def rms_norm(value, weight):
        return weight * value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + 1e-5)

    def rotate_half(value):
        return torch.cat((-value[..., D // 2 :], value[..., : D // 2]), dim=-1)

    def qk_norm(value, name):
        return rms_norm(value, w[name]) if keys.get("qk_norm", True) else value

    inverse = 1 / base ** (torch.arange(0, D, 2).double() / D)
    angles = torch.outer(torch.arange(8).double(), inverse)
    angles = torch.cat((angles, angles), dim=-1)
    hidden = w["token_embedding.weight"][x]
    for i in range(2):
        layer = f"layers.{i}."
        normed = rms_norm(hidden, w[layer + "norm_attention.weight"])
        w_q, w_k, w_v = w[layer + "attention.qkv.weight"].split([H * D, G * D, G * D])
        out = torch.zeros(2, 8, H * D, dtype=torch.float64)
        for head in range(H):
            part = slice(head * D, (head + 1) * D)
            kv_head = head * G // H
            kv_part = slice(kv_head * D, (kv_head + 1) * D)
            q = qk_norm(normed @ w_q[part].T, layer + "attention.q_norm.weight")
            k = qk_norm(normed @ w_k[kv_part].T, layer + "attention.k_norm.weight")
            v = normed @ w_v[kv_part].T
            q, k = (t * angles.cos() + rotate_half(t) * angles.sin() for t in (q, k))
            for t in range(8):
                weights = ((k[:, : t + 1] @ q[:, t, :, None])[..., 0] / math.sqrt(D)).softmax(-1)
                out[:, t, part] = (weights[..., None] * v[:, : t + 1]).sum(1)
        hidden = hidden + out @ w[layer + "attention.proj.weight"].T
        normed = rms_norm(hidden, w[layer + "norm_mlp.weight"])
        gate, up = w[layer + "mlp.gate_up.weight"].split(24)
        activated = normed @ gate.T
        activated = activated * torch.sigmoid(activated) * (normed @ up.T)
        hidden = hidden + activated @ w[layer + "mlp.down.weight"].T
    expected = rms_norm(hidden, w["norm.weight"]) @ w["head.weight"].T
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()  # fp32 against fp64


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_modern_model_has_no_bias_and_no_learned_positions(tied, bias):
    """Its parameter count matches the formula."""
    C = 16
    L = 2
    hidden = 24
    D = 8
    net = modern(tie_embeddings=tied, bias=bias)
    assert not [name for name, _ in net.named_parameters() if "bias" in name or "position" in name]
    matrices = L * (4 * C * C + 3 * C * hidden) + (1 if tied else 2) * V * C
    assert net.parameter_count() == matrices + L * (2 * C + 2 * D) + C


@heads
def test_the_size_follows_the_heads(keys):
    C = 32
    L = 2
    hidden = 24
    H = 4
    G = keys.get("n_kv_head", H)
    D = keys.get("head_dim", C // H)
    net = modern(d_model=C, n_head=H, **keys)
    attention = C * (H + 2 * G) * D + H * D * C
    norms = 2 * C + (2 * D if keys.get("qk_norm", True) else 0)
    assert net.parameter_count() == L * (attention + 3 * C * hidden + norms) + V * C + C
    assert net.layers[0].attention.qkv.weight.shape == ((H + 2 * G) * D, C)
    assert net.layers[0].attention.proj.weight.shape == (C, H * D)


def test_a_model_without_qk_norm_has_no_weights_for_it():
    names = [name for name, _ in modern(qk_norm=False).named_parameters()]
    assert not [name for name in names if "q_norm" in name or "k_norm" in name]


def test_the_default_heads_equal_the_same_values_spelled_out():
    plain = modern().state_dict()
    spelled = modern(n_kv_head=2, head_dim=8, rope_base=10_000.0, qk_norm=True).state_dict()
    assert parts.same(dict(plain), dict(spelled))


@pytest.mark.parametrize(("d_model", "hidden"), [(16, 32), (192, 512), (768, 2048)])
def test_a_modern_model_gets_as_many_mlp_weights_as_with_gelu_by_default(d_model, hidden):
    with torch.device("meta"):
        found = GPT(model_config(architecture="modern", d_model=d_model, d_hid=None), V)
    assert found.layers[0].mlp.gate_up.weight.shape == (2 * hidden, d_model)


def test_rotated_queries_and_keys_depend_only_on_their_distance():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 16, generator=generator) for _ in range(2))

    def turn(position: int):
        return rotation(torch.tensor([position]), 16, 10_000.0)

    def score(i: int, j: int) -> float:
        return (rotate(q, turn(i)) * rotate(k, turn(j))).sum().item()

    for distance in (0, 1, 7):
        scores = [score(start + distance, start) for start in (0, 1, 5, 100, 500)]
        assert scores == pytest.approx(scores[:1] * 5, abs=1e-4)  # fp32 angles of some hundreds
    assert abs(score(3, 0) - score(0, 3)) > 1e-2
    assert abs(score(3, 0) - score(5, 0)) > 1e-2
    assert torch.equal(rotate(q, turn(0)), q)  # the first token is not turned


def test_the_rotation_of_later_tokens_equals_that_in_the_whole_sequence():
    whole = rotation(torch.arange(8), 8, 500.0)
    later = rotation(torch.arange(5, 8), 8, 500.0)
    for a, b in zip(whole, later, strict=True):
        assert a.shape == (8, 1, 8)
        assert torch.equal(a[5:], b)


def test_a_modern_models_later_token_never_changes_earlier_logits():
    net = modern()
    x = ids()
    other = x.clone()
    other[:, 5] = (other[:, 5] + 1) % V
    with evaluating(net):
        before = net(x)[0]
        after = net(other)[0]
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5], after[:, 5])


# Initialisation


@pytest.mark.parametrize("tied", [True, False])
def test_initial_weights_have_the_documented_spread(tied):
    cfg = model_config(d_model=128, n_layers=8, d_hid=256, init_range=0.05, tie_embeddings=tied)
    net = build_model(cfg, 100, parts.CPU, 7)
    for name, parameter in net.named_parameters():
        if parameter.dim() < 2:
            assert torch.equal(
                parameter, torch.full_like(parameter, float(not name.endswith("bias")))
            ), name
            continue
        residual = name.endswith(("attention.proj.weight", "down.weight"))
        expected = 0.05 / math.sqrt(2 * 8) if residual else 0.05
        spread = 6 / math.sqrt(2 * parameter.numel())  # six standard errors of a standard deviation
        assert abs(parameter.std().item() / expected - 1) < spread, name
        assert abs(parameter.mean().item()) < 6 * expected / math.sqrt(parameter.numel()), name


def test_the_same_seed_gives_the_same_weights_and_another_gives_others():
    a, b, other = (model(seed).state_dict() for seed in (4, 4, 5))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not any(torch.equal(a[name], other[name]) for name in a if a[name].dim() >= 2)


def test_building_a_model_neither_reads_nor_moves_the_global_generator():
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = model().state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    again = model().state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_every_parameter_is_fp32_shares_no_memory_and_is_trained():
    net = model()
    net(ids(), ids(seed=1))[1].backward()
    parameters = dict(net.named_parameters())
    assert all(p.device == parts.CPU and p.dtype == torch.float32 for p in parameters.values())
    assert len({p.data_ptr() for p in parameters.values()}) == len(parameters)
    assert all(
        p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any()
        for p in parameters.values()
    )


def test_tied_embedding_and_head_are_one_tensor_and_untied_are_two():
    tied = model(tie_embeddings=True)
    untied = model(tie_embeddings=False)
    assert tied.head.weight is tied.token_embedding.weight
    assert untied.head.weight is not untied.token_embedding.weight
    assert not torch.equal(untied.head.weight, untied.token_embedding.weight)


def test_tied_weights_stay_tied_after_an_update_and_after_loading():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    net(ids(), ids(seed=1))[1].backward()
    optimizer.step()
    assert torch.equal(net.head.weight, net.token_embedding.weight)
    net.load_state_dict(model(seed=9).state_dict())
    assert net.head.weight is net.token_embedding.weight


# Modes


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_restores_the_mode_even_after_an_error(training):
    net = model(dropout=0.5)
    net.train(training)

    def fail() -> None:
        with evaluating(net):
            assert not any(module.training for module in net.modules())
            assert not torch.is_grad_enabled()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all(module.training is training for module in net.modules())
    assert torch.is_grad_enabled()


def test_dropout_acts_only_in_training():
    net = model(dropout=0.5, attention_dropout=0.5)
    x = ids()
    net.train()
    assert not torch.equal(net(x)[0], net(x)[0])
    before = torch.get_rng_state()
    with evaluating(net):
        assert torch.equal(net(x)[0], net(x)[0])
    assert torch.equal(torch.get_rng_state(), before)


def outputs(**keys) -> torch.Tensor:
    """Return the logits in training mode, with large weights and a fixed seed."""
    net = model(**{"init_range": 0.3, **keys})
    net.train()
    torch.manual_seed(0)
    return net(ids(T=6))[0].detach()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n_head", 4),
        ("layer_norm_eps", 1e-1),
        ("init_range", 0.2),
        ("dropout", 0.3),
        ("attention_dropout", 0.3),
    ],
)
def test_a_key_that_changes_no_shape_changes_the_logits(key, value):
    plain = outputs()
    changed = outputs(**{key: value})
    assert plain.shape == changed.shape
    assert (plain - changed).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("key", "value"),
    [("d_model", 32), ("n_layers", 3), ("d_hid", 40), ("max_seq_length", 9), ("bias", False)],
)
def test_a_key_that_changes_sizes_changes_the_shapes(key, value):
    plain, changed = (
        {name: t.shape for name, t in model(**keys).state_dict().items()}
        for keys in ({}, {key: value})
    )
    assert plain != changed


def test_no_linear_and_no_norm_has_a_bias_when_bias_is_off():
    assert not [name for name, _ in model(bias=False).named_parameters() if name.endswith("bias")]
    biased = {name for name, _ in model().named_parameters() if name.endswith("bias")}
    layers = {
        name for name, m in model().named_modules() if isinstance(m, (nn.Linear, nn.LayerNorm))
    } - {"head"}
    assert biased == {f"{name}.bias" for name in layers}


def test_each_of_the_two_dropouts_acts_only_in_its_own_place():
    def noise(**keys):
        net = model(init_range=0.3, **keys)
        net.train()
        torch.manual_seed(0)
        spread = []
        net.layers[0].attention.register_forward_hook(
            lambda module, args, out: spread.append(out.detach())
        )
        net.layers[0].register_forward_pre_hook(
            lambda module, args: spread.append(args[0].detach())
        )
        net(ids())
        return spread  # the first block's input, and its attention's result

    plain = noise()
    residual = noise(dropout=0.3)
    attention = noise(attention_dropout=0.3)
    assert not torch.equal(plain[0], residual[0])  # embeddings
    assert torch.equal(plain[0], attention[0])
    assert not torch.equal(plain[1], attention[1])
