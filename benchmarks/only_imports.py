"""Import what every start of training imports, and end: the reference of the part `startup`."""

import torch.utils.tensorboard  # noqa: F401 imported for the time it takes
