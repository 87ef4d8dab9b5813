"""Parts that are loaded ahead are those that would have been loaded in turn, failures included; no thread is left."""

import threading
import weakref

import numpy as np
import pytest
from sana_runtime import ahead
from sana_runtime.ahead import workers
from sana_runtime.errors import BackendError
from sana_runtime.parts import Parts
from sana_runtime.session import Interrupted


class Doubling:
    """A session that doubles what it is fed, and knows the thread that made it."""

    def __init__(self, name):
        self.name = name
        self.thread = threading.current_thread()
        self.prepared = None

    def prepare(self, feeds):
        self.prepared = feeds

    def run(self, feeds):
        return {name: 2 * array for name, array in feeds.items()}

    def interrupt(self):
        pass


class Loader:
    """Loads parts, one by one or held up until `go` is set; remembers each."""

    def __init__(self):
        self.go = threading.Event()
        self.go.set()
        self.made = []

    def __call__(self, name):
        self.go.wait(10)
        self.made.append(Doubling(name))
        return self.made[-1]


FEEDS = {"x": np.ones(3, np.float32)}


@pytest.fixture
def load():
    return Loader()


@pytest.fixture
def threads():
    """A function that names the loading threads, but for those of other tests' pipelines."""
    before = set(threading.enumerate())

    def ours():
        return [each.name for each in threading.enumerate() if each.name.startswith("sana-load") and each not in before]

    return ours


def test_a_part_that_is_expected_is_loaded_once_and_in_another_thread(threads, load):
    parts = Parts(load, together=True, workers=2)
    parts.expect("decoder", FEEDS)
    parts.expect("decoder")
    np.testing.assert_array_equal(parts.run("decoder", FEEDS)["x"], 2 * FEEDS["x"])
    (session,) = load.made
    assert session.thread is not threading.current_thread()
    assert session.prepared is FEEDS
    parts.expect("decoder")
    parts.drop(keep=None)
    assert len(load.made) == 1
    assert threads() == []


@pytest.mark.parametrize("plan", [{"together": False, "workers": 2}, {"together": True, "workers": 0}])
def test_nothing_is_loaded_ahead_one_at_a_time_or_on_one_core(threads, load, plan):
    parts = Parts(load, **plan)
    parts.expect("decoder")
    assert threads() == []
    parts.run("decoder", FEEDS)
    assert load.made[0].thread is threading.current_thread()


def test_a_part_that_fails_ahead_fails_where_it_is_needed_and_with_its_own_words():
    failed_in = []

    def load(name):
        failed_in.append(threading.current_thread())
        raise BackendError(f"{name}: broken")

    parts = Parts(load, together=True, workers=1)
    parts.expect("decoder")
    parts._ahead._begun["decoder"].exception()  # which nobody has raised
    with pytest.raises(BackendError, match=r"^decoder: broken$"):
        parts.run("decoder", FEEDS)
    assert failed_in[1:] == [threading.current_thread()]


OTHER = {"x": np.ones(5, np.float32)}


@pytest.mark.parametrize("state", ["waiting", "under way", "done"])
def test_a_part_that_is_expected_for_another_size_is_made_for_that_and_the_first_is_gone(threads, load, state):
    parts = Parts(load, together=True, workers=1)
    load.go.clear()
    if state == "waiting":
        parts.expect("decoder")
    parts.expect("transformer", FEEDS)
    if state == "done":
        load.go.set()
        parts._ahead._begun["transformer"].result()
    first = [weakref.ref(made) for made in load.made]
    load.made.clear()
    parts.expect("transformer", OTHER)
    assert [each() for each in first] == [None] * len(first)
    load.go.set()
    parts._ahead._begun["transformer"].result()
    parts.run("transformer", OTHER)
    assert load.made[-1].prepared is OTHER
    assert load.made[-1].thread is not threading.current_thread()
    before = {"waiting": ["decoder"], "under way": ["transformer"], "done": []}[state]
    assert [made.name for made in load.made] == [*before, "transformer"]
    parts.drop(keep=None)
    assert threads() == []


def test_a_part_that_cannot_be_made_for_the_first_size_is_made_for_the_second(load):
    def only_five(name):
        session = load(name)
        if not load.made[1:]:
            session.prepare = lambda feeds: 1 / 0
        return session

    parts = Parts(only_five, together=True, workers=1)
    parts.expect("transformer", FEEDS)
    parts._ahead._begun["transformer"].exception()
    parts.expect("transformer", OTHER)
    parts._ahead._begun["transformer"].result()
    parts.run("transformer", OTHER)
    assert load.made[1].prepared is OTHER
    assert load.made[1].thread is not threading.current_thread()


@pytest.fixture
def held_up(load):
    """One thread held up with the transformer, the decoder behind it; it goes on in a moment."""
    parts = Parts(load, together=True, workers=1)
    load.go.clear()
    parts.expect("transformer")
    parts.expect("decoder")
    threading.Timer(0.05, load.go.set).start()
    return parts


def test_a_part_that_no_thread_has_come_to_is_not_waited_for(threads, load, held_up):
    held_up.run("decoder", FEEDS)
    held_up.drop(keep=None)
    assert {made.name: made.thread is threading.current_thread() for made in load.made} == {
        "decoder": True,
        "transformer": False,
    }
    assert threads() == []


def test_dropping_waits_for_what_is_being_loaded_and_begins_nothing_more(threads, load, held_up):
    held_up.drop(keep=None)
    assert [made.name for made in load.made] == ["transformer"]
    assert threads() == []
    assert held_up.loaded == ()
    held_up.run("decoder", FEEDS)
    assert held_up.loaded == ("decoder",)


def test_a_cancellation_while_a_part_is_being_loaded_is_heard(load):
    parts = Parts(load, together=True, workers=1)
    load.go.clear()
    parts.expect("decoder")
    threading.Timer(0.05, lambda: (parts.interrupt(), load.go.set())).start()
    with pytest.raises(Interrupted):
        parts.run("decoder", FEEDS)
    parts.resume()
    parts.run("decoder", FEEDS)
    assert len(load.made) == 1


def test_as_many_parts_are_loaded_at_once_as_threads_are_allowed_and_cores_are_there(monkeypatch):
    monkeypatch.setattr(ahead.os, "sched_getaffinity", lambda _: set(range(2)), raising=False)
    assert [workers(threads) for threads in (0, 1, 2, 8)] == [2, 0, 2, 2]
    monkeypatch.setattr(ahead.os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert workers(0) == 0
