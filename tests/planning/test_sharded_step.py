"""A step of many ranks on one machine, with fake tensors."""

import pytest
import torch.distributed as dist
from harness import ROOT
from tiny import V, tiny

from chatgot.config_file import load_config
from chatgot.planning.sharded_step import fake_step

LARGE = ROOT / "configs" / "models" / "chatgot_small_85M.yaml"
EIGHT_BILLION = (
    "model.architecture=modern",
    "model.d_model=4096",
    "model.n_layers=32",
    "model.n_head=32",
    "model.n_kv_head=8",
    "model.d_hid=14336",
)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_each_rank_holds_its_share_after_a_fake_step(optimizer):
    step = fake_step(tiny({"optimizer": optimizer}), V, 8, "fsdp", 1)
    assert step.own < step.whole / 7
    assert not dist.is_initialized()


def test_ddp_leaves_each_rank_the_whole_model():
    step = fake_step(tiny(), V, 4, "ddp", 1)
    assert step.own == step.whole


def test_error_of_a_fake_step_leaves_no_process_group():
    with pytest.raises(RuntimeError, match="overflow"):
        fake_step(tiny(), V, 4, "fsdp", 2**60)
    assert not dist.is_initialized()


@pytest.mark.slow
@pytest.mark.parametrize(("overrides", "vocabulary"), [((), 100), (EIGHT_BILLION, 128256)])
def test_512_ranks_step_once_with_large_models(overrides, vocabulary):
    config, _ = load_config(LARGE, overrides)
    step = fake_step(config, vocabulary, 512, "fsdp", 1)
    assert step.own < step.whole / 400
