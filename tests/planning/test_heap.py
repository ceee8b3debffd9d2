"""How the heap grows: by holes that the next block does not fit into."""

from chatgot.planning.heap import Heap

MIB = 1 << 20


def test_hole_of_the_same_size_is_too_small_while_the_graph_lives():
    heap = Heap()
    first = heap.allocate(MIB)
    heap.allocate(MIB)
    heap.release(first)
    heap.allocate(MIB)
    assert heap.high > 3 * MIB


def test_smaller_blocks_go_into_a_hole():
    heap = Heap()
    first = heap.allocate(MIB)
    heap.allocate(MIB)
    heap.release(first)
    heap.allocate(MIB // 2)
    heap.allocate(MIB // 4)
    assert 2 * MIB < heap.high < 2 * MIB + 1000


def test_all_holes_join_when_the_graph_is_gone():
    heap = Heap()
    blocks = [heap.allocate(MIB) for _ in range(8)]
    for block in blocks[::2] + blocks[1::2]:
        heap.release(block)
    heap.forget_graph()
    heap.allocate(8 * MIB)
    assert heap.high < 8 * MIB + 2000


def test_high_mark_stays_when_all_is_freed():
    heap = Heap()
    heap.release(heap.allocate(5 * MIB))
    heap.forget_graph()
    high = heap.high
    heap.allocate(MIB)
    assert high == heap.high >= 5 * MIB
