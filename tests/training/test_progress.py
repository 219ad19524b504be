import io

import pytest

from segjax.training.progress import Progress, Throughput


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_plain_output_is_a_line_every_few_seconds_and_one_at_the_end(clock):
    stream = io.StringIO()
    with Progress(100, stream=stream, seconds_between_lines=10, clock=clock) as progress:
        for step in range(1, 51):
            clock.now += 1.0
            progress.update(step, loss=1 / step)
    shown = stream.getvalue()
    assert [int(line.split()[1].split("/")[0]) for line in shown.splitlines()] == [
        *(1, 11, 21, 31, 41, 50)
    ]
    assert "\r" not in shown


def test_plain_output_tells_loss_rate_and_time_left(clock):
    stream = io.StringIO()
    progress = Progress(300, first_step=100, stream=stream, seconds_between_lines=0, clock=clock)
    clock.now = 500.0  # compilation, which must not count in the time left
    progress.update(101, loss=0.25)
    clock.now += 40.0
    progress.update(121, images_per_second=12.34)
    assert stream.getvalue().splitlines() == [
        "step 101/300 (34%)  loss 0.25",
        "step 121/300 (40%)  loss 0.25  12.34 images/s  05:58 left",
    ]


def test_a_bar_counts_resumed_steps_as_done():
    stream = Terminal()
    with Progress(8, first_step=6, stream=stream) as progress:
        assert "6/8" in stream.getvalue()
        progress.update(7, loss=0.125, images_per_second=3.5)
        progress.message("validation: mean IoU 0.9")
        progress.update(8)
    shown = stream.getvalue()
    assert "8/8" in shown
    assert "loss 0.125  3.5 images/s" in shown
    assert "validation: mean IoU 0.9\n" in shown


def test_messages_are_lines_of_their_own_and_closing_twice_is_harmless():
    stream = io.StringIO()
    progress = Progress(2, stream=stream)
    progress.message("hello")
    progress.update(1)
    progress.close()
    progress.close()
    assert stream.getvalue() == "hello\nstep 1/2 (50%)\n"


def test_only_the_writing_process_shows_anything():
    stream = Terminal()
    with Progress(2, stream=stream, write=False) as progress:
        progress.update(1, loss=1.0)
        progress.message("hello")
    assert stream.getvalue() == ""


def test_throughput_counts_images_between_readings_and_not_before_a_restart(clock):
    throughput = Throughput(clock=clock)
    throughput.add(1000)
    clock.now += 60.0
    throughput.restart()
    for _ in range(5):
        throughput.add(8)
        clock.now += 0.5
    assert throughput.read() == 16.0
    throughput.add(6)
    clock.now += 2.0
    assert throughput.read() == 3.0
    clock.now += 1.0
    assert throughput.read() is None
