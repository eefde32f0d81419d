"""What the recorder makes of moments, and moments of events, with clocks and events that the test turns by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from hetsched.runtime.events import Arrival, Event, EventPool
from hetsched.runtime.measure.clock import EventClock
from hetsched.runtime.measure.recorder import Recorder
from hetsched.runtime.transport.peer import PeerSend
from hetsched.schedule.action import parse_action

F0, F1 = parse_action("llm:0F0"), parse_action("llm:0F1")


class TurnedClock:
    """A clock that stands still until it is turned."""

    def __init__(self) -> None:
        self.now = self.began_ns = self.drift_ns = 0
        self.times: list[int] = []

    def begin(self) -> None:
        self.times = []

    def mark(self) -> int:
        self.times.append(self.now)
        return len(self.times) - 1

    def mark_posted(self, last: int) -> int:
        return self.mark()

    def mark_here(self) -> int:
        return self.mark()

    def arrival(self, of: Arrival) -> int | None:
        return self.mark()

    def end(self) -> Sequence[int]:
        return self.times


@contextmanager
def takes(clock: TurnedClock, time: int) -> Iterator[None]:
    yield
    clock.now += time


def test_waits_before_the_work_are_told_from_those_inside_it() -> None:
    clock = TurnedClock()
    recorder = Recorder(clock)
    recorder.begin_step()
    with recorder.action(F0):
        with recorder.waiting(), takes(clock, 10):
            pass
        with recorder.waiting(), takes(clock, 5):
            pass
        with recorder.working():
            with takes(clock, 100):
                pass
            with recorder.waiting(), takes(clock, 30):
                pass
            with takes(clock, 60):
                pass
        with recorder.waiting(), takes(clock, 7):
            pass
    with recorder.action(F1), recorder.working(), takes(clock, 50):
        pass
    recorder.end_step()
    first, second = recorder.records
    assert (first.start_ns, first.ready_ns, first.end_ns, first.inner_wait_ns) == (0, 15, 212, 37)
    assert (first.waited_ns, first.work_ns) == (52, 160)
    assert (second.start_ns, second.ready_ns, second.end_ns, second.waited_ns) == (212, 212, 262, 0)
    assert recorder.waited_ns == 52


def test_an_action_starts_where_the_one_before_it_ends() -> None:
    clock = TurnedClock()
    recorder = Recorder(clock)
    recorder.begin_step()
    clock.now = 3
    for action in (F0, F1):
        with recorder.action(action), takes(clock, 10):
            pass
        clock.now += 2
    recorder.end_step()
    assert [(r.start_ns, r.end_ns) for r in recorder.records] == [(0, 13), (13, 25)]


def test_a_pause_is_no_part_of_an_action() -> None:
    clock = TurnedClock()
    recorder = Recorder(clock)
    recorder.begin_step()
    with recorder.action(F0), takes(clock, 10):
        pass

    def work() -> None:
        clock.now += 100

    recorder.pause(work)
    with recorder.action(F1), takes(clock, 10):
        pass
    recorder.end_step()
    assert [(r.start_ns, r.end_ns) for r in recorder.records] == [(0, 10), (110, 120)]


def test_a_step_forgets_the_one_before() -> None:
    clock = TurnedClock()
    recorder = Recorder(clock)
    for number in (2, 1):
        recorder.begin_step()
        for _ in range(number):
            with recorder.action(F0), takes(clock, 1):
                pass
        recorder.end_step()
        assert len(recorder.records) == number


def test_the_part_of_the_host_that_is_the_stages_own_is_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 1000, 10))
    monkeypatch.setattr("hetsched.runtime.measure.recorder.time.perf_counter_ns", lambda: next(now))
    recorder = Recorder(TurnedClock())
    recorder.begin_step()
    with recorder.action(F0), recorder.working():
        pass
    recorder.end_step()
    (record,) = recorder.records
    assert (record.host_ns, record.stage_host_ns) == (30, 10)


@dataclass
class Stream:
    """What was given to it is done at ``free_ns`` of the host's time."""

    free_ns: int = 0


class Device:
    """A GPU whose streams do one thing after the other, beside a host whose time passes as it launches and waits.

    Args:
        rate: of the GPU's clock, against the host's.
    """

    def __init__(self, rate: float = 1.0) -> None:
        self.rate, self.host_ns = rate, 1_000_000
        self.num_events = self.num_waits = 0
        self.work = self.current = Stream()

    def launch(self, duration_ns: int) -> None:
        """A kernel, which takes the host 1 us."""
        self.host_ns += 1000
        self.current.free_ns = max(self.current.free_ns, self.host_ns) + duration_ns

    def make_event(self) -> FakeEvent:
        self.num_events += 1
        return FakeEvent(self)

    def use(self, stream: Stream) -> None:
        self.current = stream

    def clock(self) -> EventClock:
        return EventClock(
            self.make_event,
            current=lambda: self.current,
            aside=Stream(),
            now_ns=lambda: self.host_ns,
        )


@dataclass
class FakeEvent:
    device: Device
    at_ns: int = 0

    def record(self, stream: Stream | None = None) -> None:
        assert stream is not None, "moments are of streams"
        self.device.host_ns += 100
        self.at_ns = max(self.device.host_ns, stream.free_ns)

    def query(self) -> bool:
        return self.at_ns <= self.device.host_ns

    def synchronize(self) -> None:
        self.device.num_waits += 1
        self.device.host_ns = max(self.device.host_ns, self.at_ns) + 100

    def elapsed_time(self, end_event: FakeEvent) -> float:
        return (end_event.at_ns - self.at_ns) * self.device.rate / 1e6


@dataclass
class Message:
    """It arrives at a time of the host."""

    at_ns: int

    def seen(self, aside: Stream, events: EventPool) -> Event:
        aside.free_ns = max(aside.free_ns, self.at_ns)
        event = events.take()
        event.record(aside)
        return event


def test_events_give_the_times_of_the_device_on_the_clock_of_the_host() -> None:
    device = Device()
    clock = device.clock()
    device.launch(5_000_000)
    clock.begin()
    assert device.host_ns > 6_000_000, "what was launched before the step is no part of it"
    began = device.host_ns
    device.launch(300_000)
    first = clock.mark()
    device.launch(200_000)
    second = clock.mark()
    launched = device.host_ns - began
    times = clock.end()
    assert launched < 10_000, "the host is far ahead of the device"
    assert times[first] + clock.began_ns == pytest.approx(began + 301_000, abs=300)
    assert times[second] - times[first] == 200_000


def test_within_a_step_the_host_waits_for_no_event_and_later_steps_make_none_but_to_compare_clocks() -> None:
    device = Device()
    clock = device.clock()
    made = []
    for _ in range(3):
        clock.begin()
        waits, before = device.num_waits, device.num_events
        for _ in range(50):
            device.launch(1000)
            clock.mark()
        assert device.num_waits == waits
        made.append(device.num_events - before)
        clock.end()
    assert made == [50, 0, 0]


def test_what_is_posted_is_done_on_a_gpu_when_what_was_before_it_is_and_takes_no_event() -> None:
    device = Device()
    recorder = Recorder(device.clock())
    recorder.begin_step()
    send, receive = parse_action("llm:0SEND_F0"), parse_action("llm:0RECV_F1")
    for action, takes_ns in ((F0, 2_000_000), (send, 0), (receive, 0), (F1, 3_000_000)):
        before = device.num_events
        with recorder.action(action):
            device.launch(takes_ns) if takes_ns else setattr(device, "host_ns", device.host_ns + 50_000)
        assert device.num_events - before == (takes_ns > 0)
    recorder.end_step()
    first, *posted, last = recorder.records
    assert all(record.start_ns == record.end_ns == first.end_ns == last.start_ns for record in posted)
    assert last.end_ns - last.start_ns == 3_000_000


def test_a_wait_that_has_an_event_of_its_own_ends_with_it() -> None:
    device = Device()
    recorder = Recorder(device.clock())
    recorder.begin_step()
    with recorder.action(F0):
        wait = recorder.wait_for(lambda: PeerSend(FakeEvent(device, recorder.began_ns + 4_000_000)))
        device.launch(9_000_000)
    recorder.end_step()
    (record,) = recorder.records
    assert recorder.time_ns(wait.end) == record.ready_ns == 4_000_000


def test_a_wait_without_one_ends_when_the_host_or_the_stream_goes_on() -> None:
    clock = TurnedClock()
    recorder = Recorder(clock)
    recorder.begin_step()

    def wait() -> None:
        clock.now += 8

    with recorder.action(F0):
        recorder.wait_for(wait)
    recorder.end_step()
    assert recorder.records[0].ready_ns == 8


def test_what_has_an_event_of_its_own_takes_none_of_the_clocks() -> None:
    device = Device()
    clock = device.clock()
    clock.begin()
    marks = [clock.mark(), clock.arrival(PeerSend(FakeEvent(device, clock.began_ns + 7_000_000))), clock.mark()]
    assert marks == [0, 1, 2]
    times = clock.end()
    assert times[1] == 7_000_000 and times[0] < times[2] < 1_000_000


def test_a_clock_that_runs_fast_is_told() -> None:
    device = Device(rate=1.001)
    clock = device.clock()
    clock.begin()
    device.launch(100_000_000)
    clock.mark()
    clock.end()
    assert clock.drift_ns == pytest.approx(100_000, rel=0.01)


def test_an_arrival_is_seen_beside_the_work() -> None:
    device = Device()
    clock = device.clock()
    clock.begin()
    began = clock.began_ns
    device.launch(9_000_000)
    arrivals = [
        clock.arrival(Message(began + 4_000_000)),
        clock.arrival(PeerSend(FakeEvent(device, began + 3_000_000))),
    ]
    done = clock.mark()
    times = clock.end()
    assert [times[arrival] for arrival in arrivals if arrival is not None] == [4_000_000, 3_000_000]
    assert times[done] > 9_000_000
    assert device.current is device.work


def test_a_moment_of_another_stream_is_its_own() -> None:
    device = Device()
    clock = device.clock()
    clock.begin()
    device.launch(9_000_000)
    copies = Stream(clock.began_ns + 2_000_000)
    device.use(copies)
    here, done = clock.mark_here(), clock.mark()
    device.use(device.work)
    times = clock.end()
    assert times[here] == 2_000_000
    assert times[done] > 9_000_000
