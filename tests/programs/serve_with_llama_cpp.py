"""Serve a GGUF file on a free port of the loopback interface; print the address.

Usage: python serve_with_llama_cpp.py FILE TOKENS. It ends when its standard input does. One thread,
no flash attention, keys and values in fp32: so the results are as exact as they get.
"""

import os
import sys

import xllamacpp


def exact(path: str, context: int) -> xllamacpp.CommonParams:
    """Return the settings of a server."""
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = context
    params.n_parallel = 1
    params.warmup = False
    params.port = 0
    params.verbosity = 0
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
    params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    return params


if __name__ == "__main__":
    server = xllamacpp.Server(exact(sys.argv[1], int(sys.argv[2])))
    print(server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)  # to end the server itself can take for ever, soon after it has begun
