"""How large glibc's heap grows while large blocks come and go.

A block of torch begins at a multiple of 64 bytes. For it glibc looks for a hole of 96 bytes more
than it will take; of a new block, 48 bytes before it are left over. They serve the many small
objects of the autograd graph, which live as long as the graph. So a hole between two blocks is too
small for another block of the same size, and the heap grows: by a third in the forward pass of a
small model.

Source: `_int_memalign` in malloc/malloc.c of glibc 2.36.
"""

from bisect import bisect_left, insort

HEADER = 16  # bytes
ALIGNMENT = 64
LEFT_OVER = 48  # before a block
ASKED_MORE = 96  # alignment and the smallest chunk


class Heap:
    """The heap of one process; freed memory stays in it."""

    def __init__(self) -> None:
        self.high = 0  # bytes that it has had at most
        self._top = 0
        self._size_at: dict[int, int] = {}  # of each block
        self._holes: list[tuple[int, int]] = []  # (size, begin), sorted
        self._hole_at: dict[int, int] = {}  # size, by begin
        self._hole_to: dict[int, int] = {}  # begin, by end
        self._small: list[int] = []  # what small objects have taken

    def allocate(self, count: int) -> int:
        """Take a block of `count` bytes; return where it begins."""
        size = -(-count // ALIGNMENT) * ALIGNMENT + HEADER
        asked = size + ASKED_MORE
        place = bisect_left(self._holes, (asked, -1))
        if place < len(self._holes):
            room, begin = self._holes[place]
            self._remove(begin, room)
        else:
            room = asked
            begin = self._top
            self._top += asked
            self.high = max(self.high, self._top)
        self._small.append(begin)
        block = begin + LEFT_OVER
        self._size_at[block] = size
        self._add(block + size, room - size - LEFT_OVER)
        return block

    def release(self, block: int) -> None:
        """Free a block."""
        self._add(block, self._size_at.pop(block))

    def forget_graph(self) -> None:
        """Free what small objects have taken: backward is over."""
        for begin in self._small:
            self._add(begin, LEFT_OVER)
        self._small = []

    def _add(self, begin: int, size: int) -> None:
        """Add a hole, and join it to its neighbours."""
        if size <= 0:
            return
        before = self._hole_to.get(begin)
        if before is not None:
            self._remove(before, begin - before)
            size += begin - before
            begin = before
        after = self._hole_at.get(begin + size)
        if after is not None:
            self._remove(begin + size, after)
            size += after
        if begin + size == self._top:
            self._top = begin
            return
        self._hole_at[begin] = size
        self._hole_to[begin + size] = begin
        insort(self._holes, (size, begin))

    def _remove(self, begin: int, size: int) -> None:
        del self._hole_at[begin]
        del self._hole_to[begin + size]
        self._holes.pop(bisect_left(self._holes, (size, begin)))
