"""What is a model after its weights were rounded to another dtype?"""

import copy

import torch

from chatgot.exchange.formats import Dtype
from chatgot.model.gpt import GPT

TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def rounded_model(model: GPT, dtype: Dtype) -> GPT:
    """Return a model with all weights rounded to the dtype, in fp32; fp32: the model itself."""
    if dtype == "fp32":
        return model
    rounded = copy.deepcopy(model)
    for parameter in rounded.parameters():
        parameter.data = parameter.to(TORCH_DTYPES[dtype]).float()
    rounded.tie()
    return rounded
