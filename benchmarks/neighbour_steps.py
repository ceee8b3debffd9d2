"""Train for some seconds; print tokens/s and a hash of the weights: see contention.py.

    neighbour_steps.py CONFIG TEXT CACHE SECONDS WAY KEY=VALUE...

WAY: `plain` waits for threads as torch comes, `fair` as the training script does.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

from chatgot.spinning import spin_briefly

HASHED_STEPS = 2  # after so many steps the weights are hashed: the same number for both ways
WARM_UP_S = 3.0  # in which the other programs are noticed
LEAST_STEPS = 2


def main() -> None:
    """Train as the command line says, and print one line of JSON."""
    config_path, text, cache, seconds, way, *overrides = sys.argv[1:]
    if way == "fair":
        spin_briefly(os.environ)
    # only now: torch reads the environment when it is imported
    import torch

    from benchmarks.speed import one_step
    from chatgot.config_file import load_config
    from chatgot.data.configured_text import encoded
    from chatgot.machine.contention import Contention
    from chatgot.run.assembly import assemble

    config, _ = load_config(Path(config_path), overrides)
    tokens = encoded(config.data, Path(text), Path(cache))
    run = assemble(config, tokens, torch.device("cpu"), None)
    run.model.train()
    contention = Contention() if way == "fair" else None

    def step() -> None:
        if contention is not None:
            contention.look()
        one_step(run)

    start_s = time.monotonic()
    for _ in range(HASHED_STEPS):
        step()
    weights = hashlib.sha256()
    for parameter in run.model.parameters():
        weights.update(parameter.detach().numpy().tobytes())
    while time.monotonic() - start_s < WARM_UP_S:
        step()
    start_s = time.monotonic()
    steps = 0
    while steps < LEAST_STEPS or time.monotonic() - start_s < float(seconds):
        step()
        steps += 1
    rate = steps * config.training.tokens_per_step(config.model) / (time.monotonic() - start_s)
    print(json.dumps({"tokens_per_s": rate, "weights": weights.hexdigest()}))


if __name__ == "__main__":
    main()
