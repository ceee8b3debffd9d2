"""Record what a function launches on a CUDA device; one launch does all of it again.

Written for GPUs, not run on one yet.
"""

from collections.abc import Callable
from contextlib import suppress

import torch

Launch = Callable[[], None]

WARM_UPS = 3  # calls before a recording: they choose kernels and reserve memory, which it must not


def record_launches(launch: Launch, device: torch.device) -> Launch:
    """Record a function that takes and returns nothing; return what launches the same again.

    It is called a few times. Tensors from before the recording keep their addresses, so whoever
    replays it keeps them alive. Other threads may use the device meanwhile. After a failure the
    device can be used as before.

    Raises: whatever the function raises, and RuntimeError for what cannot be recorded.
    """
    current = torch.cuda.current_stream(device)
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call] # untyped in torch
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            launch()
    current.wait_stream(stream)
    with torch.cuda.device(device):  # the device "cuda" has no number of its own
        index = torch.cuda.current_device()
    graph = torch.cuda.CUDAGraph()
    pool = torch.cuda.graph_pool_handle()
    spare = torch.Generator(device)
    try:
        # the outer context: torch does not leave the inner one when the end of a recording fails
        with (
            torch.cuda.stream(current),
            torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
        ):
            launch()
    except BaseException:  # a signal, too, would leave the allocator recording
        _clean_up_after(pool, spare, index)
        raise
    return graph.replay


def _clean_up_after(pool: tuple[int, int], spare: torch.Generator, index: int) -> None:
    """Undo what torch leaves behind when the end of a recording fails (CUDAGraph::capture_end).

    The allocator would think that it is still recording, and in torch 2.11 the global generator,
    too, which would refuse to draw from then on. It gets the state of `spare`.

    index: the device's number.
    """
    # RuntimeError: torch has done it; AttributeError: an older version has another name
    with suppress(AttributeError, RuntimeError):
        torch._C._cuda_endAllocateToPool(index, pool)  # noqa: SLF001 no other name
        torch._C._cuda_releasePool(index, pool)  # noqa: SLF001
    generator = torch.cuda.default_generators[index]
    generator.graphsafe_set_state(spare.graphsafe_get_state())
