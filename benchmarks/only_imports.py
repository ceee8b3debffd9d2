"""Import everything that training imports at its start, and end: the reference for `startup`."""

import torch.utils.tensorboard  # noqa: F401 imported for the time it takes
