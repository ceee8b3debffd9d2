"""A plain GPT, trained by Lightning or by the Hugging Face Trainer.

    python benchmarks/plain_gpt.py lightning job.json
    python benchmarks/plain_gpt.py trainer job.json

The peers' side of the part `frameworks` of scripts/benchmark.py, which writes job.json and runs
this with the interpreter of an environment that has the frameworks. The last printed line is JSON:
tokens/s after the warm-up steps, the dtype used, versions.
Letters: B batch, T time (tokens), C width, H heads, D head size C / H, V vocabulary.
"""

import argparse
import json
import time
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

LEARNING_RATE = 6e-4
WEIGHT_DECAY = 0.1


class Job(TypedDict):
    """The job that benchmark.py writes."""

    ids: str  # path of the training ids, .npy
    folder: str  # for what the frameworks write
    steps: int
    warmup: int  # steps at the start that the rate leaves out
    precision: str  # bf16 or fp32
    vocab_size: int
    d_model: int
    n_layers: int
    n_head: int
    d_hid: int
    max_seq_length: int
    bias: bool
    dropout: float
    batch_size: int


class Block(nn.Module):
    """Attention, then the MLP; each reads the normalised residual stream and adds to the stream."""

    def __init__(self, C: int, n_head: int, d_hid: int, bias: bool, dropout: float) -> None:
        super().__init__()
        self.n_head = n_head
        self.dropout = dropout
        self.norm_attention = nn.LayerNorm(C, bias=bias)
        self.norm_mlp = nn.LayerNorm(C, bias=bias)
        self.qkv = nn.Linear(C, 3 * C, bias=bias)
        self.proj = nn.Linear(C, C, bias=bias)
        self.up = nn.Linear(C, d_hid, bias=bias)
        self.down = nn.Linear(d_hid, C, bias=bias)

    def forward(self, h: Tensor) -> Tensor:
        B, T, C = h.shape
        chunks = self.qkv(self.norm_attention(h)).chunk(3, dim=-1)  # 3 x (B, T, C)
        q, k, v = (t.view(B, T, self.n_head, -1).transpose(1, 2) for t in chunks)  # (B, H, T, D)
        rate = self.dropout if self.training else 0.0
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=rate)  # (B, H, T, D)
        a = self.proj(a.transpose(1, 2).reshape(B, T, C))  # (B, T, C)
        h = h + F.dropout(a, self.dropout, self.training)
        m = self.down(F.gelu(self.up(self.norm_mlp(h))))  # (B, T, C)
        return h + F.dropout(m, self.dropout, self.training)


class PlainGPT(nn.Module):
    """GPT-2's architecture; returns {"loss": ...}, which both frameworks accept."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        C = job["d_model"]
        self.dropout = job["dropout"]
        self.token_embedding = nn.Embedding(job["vocab_size"], C)
        self.position_embedding = nn.Embedding(job["max_seq_length"], C)
        blocks = [
            Block(C, job["n_head"], job["d_hid"], job["bias"], self.dropout)
            for _ in range(job["n_layers"])
        ]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(C, bias=job["bias"])
        self.head = nn.Linear(C, job["vocab_size"], bias=False)
        self.head.weight = self.token_embedding.weight
        for embedding in (self.token_embedding, self.position_embedding):
            nn.init.normal_(embedding.weight, std=0.02)
        self.computed_in = ""

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        positions = torch.arange(x.size(1), device=x.device)
        h = self.token_embedding(x) + self.position_embedding(positions)  # (B, T, C)
        h = self.blocks(F.dropout(h, self.dropout, self.training))
        logits = self.head(self.norm(h))  # (B, T, V)
        self.computed_in = str(logits.dtype)
        return {"loss": F.cross_entropy(logits.float().flatten(0, 1), y.flatten())}


class RandomWindows(Dataset[dict[str, Tensor]]):
    """As many random windows of the text as the run needs."""

    def __init__(self, job: Job) -> None:
        self.ids = np.load(job["ids"], mmap_mode="r")
        self.T = job["max_seq_length"]
        count = job["steps"] * job["batch_size"]
        self.starts = np.random.default_rng(0).integers(len(self.ids) - self.T, size=count)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        start = self.starts[i]
        window = torch.from_numpy(self.ids[start : start + self.T + 1].astype(np.int64))
        return {"x": window[:-1], "y": window[1:]}


def train_with_lightning(job: Job, model: PlainGPT, ends: list[float]) -> dict[str, str]:
    """Train with Lightning's Trainer; append the time of each step's end; return the versions."""
    import lightning  # type: ignore[import-not-found]  # in the peers' environment alone

    class Module(lightning.LightningModule):  # type: ignore[misc]  # its types are not here
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
            loss: Tensor = self.model(**batch)["loss"]
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            # not fused: Lightning refuses to clip for that one
            return torch.optim.AdamW(self.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    class Clock(lightning.Callback):  # type: ignore[misc]  # its types are not here
        def on_train_batch_end(self, *_: object) -> None:
            ends.append(time.perf_counter())

    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        precision="bf16-mixed" if job["precision"] == "bf16" else "32-true",
        max_steps=job["steps"],
        gradient_clip_val=1.0,
        callbacks=[Clock()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=job["folder"],
    )
    loader = DataLoader(RandomWindows(job), batch_size=job["batch_size"], shuffle=True)
    trainer.fit(Module(), loader)
    return {"lightning": lightning.__version__}


def train_with_trainer(job: Job, model: PlainGPT, ends: list[float]) -> dict[str, str]:
    """Train like train_with_lightning, but with the HF Trainer, its AdamW and clipping."""
    import transformers

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            ends.append(time.perf_counter())

    arguments = transformers.TrainingArguments(
        output_dir=job["folder"],
        use_cpu=True,
        bf16=job["precision"] == "bf16",
        max_steps=job["steps"],
        per_device_train_batch_size=job["batch_size"],
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=1.0,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(
        model, arguments, train_dataset=RandomWindows(job), callbacks=[Clock()]
    )
    trainer.train()
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
    job: Job = json.loads(args.job.read_text(encoding="utf-8"))
    torch.manual_seed(0)
    model = PlainGPT(job)
    ends: list[float] = []
    train = train_with_lightning if args.framework == "lightning" else train_with_trainer
    versions = train(job, model, ends)
    assert len(ends) == job["steps"], f"{len(ends)} steps were made, {job['steps']} were asked for"
    tokens = (job["steps"] - job["warmup"]) * job["batch_size"] * job["max_seq_length"]
    figures = {
        "tokens_per_s": tokens / (ends[-1] - ends[job["warmup"] - 1]),
        "computed_in": model.computed_in.removeprefix("torch."),
        "parameters": sum(p.numel() for p in model.parameters()),
        "torch": torch.__version__,
    }
    print(json.dumps(figures | versions))


if __name__ == "__main__":
    main()
