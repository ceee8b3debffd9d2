"""ChatGoT: train a small chat-style language model from scratch, on the machine you have, without losing a run."""
