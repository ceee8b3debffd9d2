"""A plain GPT as anyone would write it, trained by Lightning or by the Hugging Face Trainer: the peers' side.

    python scripts/plain_gpt.py lightning job.json
    python scripts/plain_gpt.py trainer job.json

scripts/benchmark_peers.py writes job.json and runs this with the interpreter of an environment that has the frameworks.
The last line that it prints is JSON: tokens/s after the warm-up steps, the dtype that was computed in, versions.
Letters: B batch, T time (tokens), C width, H heads, D head size C / H, V vocabulary.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


class Block(nn.Module):
    def __init__(self, C: int, n_head: int, d_hid: int, bias: bool, dropout: float) -> None:
        super().__init__()
        self.n_head, self.dropout = n_head, dropout
        self.norm_attention, self.norm_mlp = nn.LayerNorm(C, bias=bias), nn.LayerNorm(C, bias=bias)
        self.qkv, self.proj = nn.Linear(C, 3 * C, bias=bias), nn.Linear(C, C, bias=bias)
        self.up, self.down = nn.Linear(C, d_hid, bias=bias), nn.Linear(d_hid, C, bias=bias)

    def forward(self, h: Tensor) -> Tensor:
        B, T, C = h.shape
        q, k, v = (
            t.view(B, T, self.n_head, -1).transpose(1, 2)
            for t in self.qkv(self.norm_attention(h)).chunk(3, dim=-1)
        )  # 3 x (B, H, T, D)
        dropout_p = self.dropout if self.training else 0.0
        a = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, dropout_p=dropout_p
        )  # (B, H, T, D)
        a = self.proj(a.transpose(1, 2).reshape(B, T, C))  # (B, T, C)
        h = h + F.dropout(a, self.dropout, self.training)
        return h + F.dropout(
            self.down(F.gelu(self.up(self.norm_mlp(h)))), self.dropout, self.training
        )


class PlainGPT(nn.Module):
    """GPT-2's architecture; returns {"loss": ...}, which both frameworks take."""

    def __init__(self, job: dict) -> None:
        super().__init__()
        C, self.dropout = job["d_model"], job["dropout"]
        self.token_embedding = nn.Embedding(job["vocab_size"], C)
        self.position_embedding = nn.Embedding(job["max_seq_length"], C)
        blocks = (
            Block(C, job["n_head"], job["d_hid"], job["bias"], self.dropout)
            for _ in range(job["n_layers"])
        )
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.head = (
            nn.LayerNorm(C, bias=job["bias"]),
            nn.Linear(C, job["vocab_size"], bias=False),
        )
        self.head.weight = self.token_embedding.weight
        for embedding in (self.token_embedding, self.position_embedding):
            nn.init.normal_(embedding.weight, std=0.02)
        self.computed_in = ""

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        h = self.token_embedding(x) + self.position_embedding(
            torch.arange(x.size(1), device=x.device)
        )  # (B, T, C)
        logits = self.head(
            self.norm(self.blocks(F.dropout(h, self.dropout, self.training)))
        )  # (B, T, V)
        self.computed_in = str(logits.dtype)
        return {"loss": F.cross_entropy(logits.float().flatten(0, 1), y.flatten())}


class RandomWindows(Dataset):
    """As many random windows of the text as the run needs."""

    def __init__(self, job: dict) -> None:
        self.ids, self.T = np.load(job["ids"], mmap_mode="r"), job["max_seq_length"]
        count = job["steps"] * job["batch_size"]
        self.starts = np.random.default_rng(0).integers(len(self.ids) - self.T, size=count)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        window = torch.from_numpy(
            self.ids[self.starts[i] : self.starts[i] + self.T + 1].astype(np.int64)
        )
        return {"x": window[:-1], "y": window[1:]}


def train_with_lightning(job: dict, model: PlainGPT, ends: list[float]) -> dict[str, str]:
    """Train with Lightning's Trainer; append the time at which each step ended; return the versions."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
            return self.model(**batch)["loss"]

        def configure_optimizers(
            self,
        ) -> torch.optim.Optimizer:  # not fused: Lightning refuses to clip for that one
            return torch.optim.AdamW(self.parameters(), lr=6e-4, weight_decay=0.1)

    class Clock(lightning.Callback):
        def on_train_batch_end(self, *_: object) -> None:
            ends.append(time.perf_counter())

    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, precision="bf16-mixed" if job["precision"] == "bf16" else "32-true",
        max_steps=job["steps"], gradient_clip_val=1.0, callbacks=[Clock()], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=job["folder"],
    )  # fmt: skip
    trainer.fit(
        Module(), DataLoader(RandomWindows(job), batch_size=job["batch_size"], shuffle=True)
    )
    return {"lightning": lightning.__version__}


def train_with_trainer(job: dict, model: PlainGPT, ends: list[float]) -> dict[str, str]:
    """Train with the Hugging Face Trainer, its AdamW and clipping; append each step's end; return the versions."""
    import transformers

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            ends.append(time.perf_counter())

    arguments = transformers.TrainingArguments(
        output_dir=job["folder"], use_cpu=True, bf16=job["precision"] == "bf16", max_steps=job["steps"],
        per_device_train_batch_size=job["batch_size"], learning_rate=6e-4, weight_decay=0.1, max_grad_norm=1.0,
        eval_strategy="no", save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    transformers.Trainer(
        model, arguments, train_dataset=RandomWindows(job), callbacks=[Clock()]
    ).train()
    return {
        "transformers": transformers.__version__,
        "optimizer": str(getattr(arguments.optim, "value", "")),
    }


def main() -> None:
    """Train as the job says and print what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("framework", choices=("lightning", "trainer"))
    parser.add_argument(
        "job", type=Path, help="JSON: shape, steps, warmup, precision, ids (.npy), folder"
    )
    args = parser.parse_args()
    job = json.loads(args.job.read_text(encoding="utf-8"))
    torch.manual_seed(0)
    model, ends = PlainGPT(job), []
    train = train_with_lightning if args.framework == "lightning" else train_with_trainer
    versions = train(job, model, ends)
    assert len(ends) == job["steps"], f"{len(ends)} steps were made, {job['steps']} were asked for"
    tokens = (job["steps"] - job["warmup"]) * job["batch_size"] * job["max_seq_length"]
    found = {
        "tokens_per_s": tokens / (ends[-1] - ends[job["warmup"] - 1]),
        "computed_in": model.computed_in.removeprefix("torch."),
        "parameters": sum(p.numel() for p in model.parameters()),
        "torch": torch.__version__,
    }
    print(json.dumps(found | versions))


if __name__ == "__main__":
    main()
