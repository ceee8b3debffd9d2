"""ChatGoT: a small chat-style language model, trained from scratch on the machine you have."""

__version__ = "0.1.0"
