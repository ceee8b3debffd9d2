"""A configuration small enough to plan in a moment."""

from chatgot.config import Config

V = 40


def tiny(training: dict | None = None, **model: object) -> Config:
    """Return a configuration; keys of its model and of its training may be set."""
    shape = {"d_model": 32, "n_layers": 2, "n_head": 2, "max_seq_length": 16, **model}
    settings = {"max_steps": 10, "batch_size": 4, "compile": False, **(training or {})}
    return Config.model_validate({"model": shape, "training": settings})
