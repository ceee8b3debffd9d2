"""Where the time goes: tokens per second, seconds by part, and durations as people say them."""

import time

import parts
import pytest

from chatgot.logs.timing import Throughput, TimeSplit, human_time
from chatgot.training.log_lines import curves


def test_throughput_counts_only_since_the_last_reading():
    throughput = Throughput()
    assert throughput.take() is None
    throughput.add(100, 1.0)
    throughput.add(200, 0.5)
    throughput.add(0, 0.5)
    assert throughput.take() == 150.0
    assert throughput.take() is None
    throughput.add(0, 3.0)  # no token: no rate, and later rates do not count its time
    assert throughput.take() is None
    throughput.add(10, 1.0)
    assert throughput.take() == 10.0
    throughput.add(10, 0.0)
    assert throughput.take() is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (86369, "23 h 59 min"),
        (86399, "1 d 00 h"),
        (3 * 86400 + 4 * 3600, "3 d 04 h"),
        (float("inf"), "unknown"),
        (float("nan"), "unknown"),
    ],
)
def test_durations_are_shown_in_their_two_largest_units(seconds, text):
    assert human_time(seconds) == text


def fail_after(seconds: float) -> None:
    """Raise an OSError after some seconds."""
    time.sleep(seconds)
    raise OSError("disk")


def test_each_part_counts_its_own_seconds_once_even_when_it_fails():
    times = TimeSplit()
    with times.of("saving"):
        time.sleep(0.02)
    with pytest.raises(OSError, match="disk"), times.of("saving"):
        fail_after(0.02)
    with times.of("forward_backward"):
        time.sleep(0.03)
    taken = times.take(data_s=0.01)
    assert taken["saving"] >= 0.04
    assert 0.02 <= taken["forward_backward"] < 0.04
    assert taken["data"] == 0.01
    assert (taken["update"], taken["evaluation"], taken["sampling"]) == (0, 0, 0)
    assert set(times.take(0.0).values()) == {0.0}


def test_the_time_to_make_batches_is_counted_and_read_once():
    training = parts.run()
    training.train_windows.batch(training.train_windows.starts(0, 4))
    assert 0 < curves(training)["time/data_s"] < 1
    assert curves(training)["time/data_s"] == 0
