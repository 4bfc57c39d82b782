"""What decides on a GPU without touching it: profiles, CUDA graphs, lanes, tensors by DLPack."""

from __future__ import annotations

import ctypes
import gc
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tfc.errors import BadInput, UsageError
from tfc.runtime.backends import device_tensor
from tfc.runtime.backends.base import GpuMemory
from tfc.runtime.backends.device_tensor import CPU_DEVICE, DeviceTensor, on_device
from tfc.runtime.backends.graph_policy import Decision, GraphKey, GraphPolicy
from tfc.runtime.backends.lane_pool import LanePool
from tfc.runtime.backends.shape_profiles import ShapeProfile, chosen_profile, ranges_of_input

RUN, CAPTURE, LAUNCH = Decision.RUN, Decision.CAPTURE, Decision.LAUNCH


def profile(least: int, best: int, most: int) -> ShapeProfile:
    """Of `ids` and `mask`: 1 to 32 rows, 8 at best, of so many tokens."""
    return ShapeProfile(dict.fromkeys(("ids", "mask"), ((1, least), (8, best), (32, most))))


def shapes(rows: int, tokens: int) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(("ids", "mask"), (rows, tokens))


BUCKETS = (profile(1, 16, 32), profile(1, 64, 128), profile(128, 256, 512))


@pytest.mark.parametrize(
    ("rows", "tokens", "chosen"),
    [
        (8, 16, 0),
        (8, 32, 0),  # both take it, and are as far from it: the first
        (8, 33, 1),
        (8, 128, 1),
        (1, 300, 2),
        (1, 513, None),
        (33, 16, None),
    ],
)
def test_the_nearest_profile_that_takes_a_batch(rows: int, tokens: int, chosen: int | None) -> None:
    assert chosen_profile(BUCKETS, shapes(rows, tokens)) == chosen


def test_a_profile_names_the_input_that_it_refuses() -> None:
    one = profile(1, 16, 32)
    assert one.refused(shapes(1, 32)) == ""
    assert one.refused({"ids": (1, 8), "mask": (1, 33)}) == "mask"
    assert one.refused({"ids": (8,), "mask": (1, 8)}) == "ids"
    assert ranges_of_input((one, one), "ids") == "(1, 1) to (32, 32)"


def test_an_axis_of_no_size_has_a_distance() -> None:
    past = ShapeProfile({"past": ((1, 0), (4, 0), (8, 64))})
    assert past.distance({"past": (4, 0)}) == 0
    assert chosen_profile((past,), {"past": (1, 0)}) == 0


def key(*shape: int, profile: int = 0) -> GraphKey:
    return GraphKey(profile, (shape, (1,)))


def test_a_graph_is_captured_the_second_time_and_launched_from_then_on() -> None:
    policy = GraphPolicy()
    assert [policy.decide(key(2, 8)) for _ in range(2)] == [RUN, CAPTURE]
    assert policy.captured(key(2, 8)) is None
    assert [policy.decide(key(2, 8)) for _ in range(2)] == [LAUNCH, LAUNCH]
    assert policy.decide(key(2, 8, profile=1)) == RUN
    policy.forget()
    assert policy.decide(key(2, 8)) == RUN


def test_large_batches_have_no_graph() -> None:
    policy = GraphPolicy(most_elements=16)
    assert [policy.decide(key(2, 8)) for _ in range(2)] == [RUN, CAPTURE]
    assert [policy.decide(key(2, 9)) for _ in range(3)] == [RUN, RUN, RUN]


def test_the_graph_that_was_not_used_for_longest_is_given_up() -> None:
    policy = GraphPolicy(most_graphs=2, calls_before=1)
    for tokens in (1, 2):
        assert policy.decide(key(1, tokens)) == CAPTURE
        assert policy.captured(key(1, tokens)) is None
    assert policy.decide(key(1, 1)) == LAUNCH
    assert policy.decide(key(1, 3)) == CAPTURE
    assert policy.captured(key(1, 3)) == key(1, 2)
    assert policy.decide(key(1, 2)) == CAPTURE


def test_shapes_that_hardly_come_again_are_forgotten() -> None:
    policy = GraphPolicy(most_graphs=2)
    assert [policy.decide(key(1, tokens)) for tokens in (1, 2, 3, 1)] == [RUN] * 4


def test_after_a_failed_capture_there_are_no_graphs() -> None:
    policy = GraphPolicy(calls_before=1)
    policy.failed()
    assert policy.decide(key(1, 1)) == RUN


def test_the_memory_of_an_engine() -> None:
    encoder = GpuMemory(plan=100, lanes=1, most_lanes=2, activations=30, buffers=5, pinned=4)
    assert (encoder.on_gpu, encoder.at_most) == (135, 170)
    both = encoder.plus(GpuMemory(10, lanes=1, most_lanes=2, activations=3, buffers=1, pinned=1))
    assert both == GpuMemory(110, 1, 2, 33, 6, 5)
    assert GpuMemory(100, 2, 2, 30, 10, 8).at_most == GpuMemory(100, 2, 2, 30, 10, 8).on_gpu


@dataclass(eq=False)
class Lane:
    profile: int = 0


def test_lanes_are_made_on_demand_and_the_right_one_is_reused() -> None:
    pool: LanePool[Lane] = LanePool(Lane, 2)
    with pool.lane(0) as first:
        pass
    with pool.lane(0) as again:
        assert again is first
    with pool.lane(1) as second:
        assert second is not first
        second.profile = 1
        with pool.lane(1) as other:
            assert other is first  # the only free one
    with pool.lane(1) as own:
        assert own is second
    assert pool.lanes == (first, second)


def test_a_caller_waits_for_a_lane_and_close_waits_for_the_callers() -> None:
    pool: LanePool[Lane] = LanePool(Lane, 1)
    order: list[str] = []
    inside, done = threading.Event(), threading.Event()

    def caller() -> None:
        with pool.lane(0):
            order.append("begun")
            inside.set()
            done.wait(10)
            order.append("ended")

    thread = threading.Thread(target=caller)
    thread.start()
    inside.wait(10)
    waiting = threading.Thread(target=lambda: order.extend(str(len(pool.close()))))
    waiting.start()
    while not pool._closed:
        waiting.join(0.001)
    with pytest.raises(UsageError, match="this engine is closed"), pool.lane(0):
        pass
    done.set()
    thread.join(10)
    waiting.join(10)
    assert order == ["begun", "ended", "1"]
    assert pool.close() == ()


def test_a_lane_that_cannot_be_made_is_not_counted() -> None:
    answers = [MemoryError(), None]

    def make() -> Lane:
        if error := answers.pop(0):
            raise error
        return Lane()

    pool: LanePool[Lane] = LanePool(make, 1)
    with pytest.raises(MemoryError), pool.lane(0):
        pass
    with pool.lane(0) as lane:
        assert pool.lanes == (lane,)


class Alive:
    """Owns memory, and counts how many do."""

    count = 0

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        Alive.count += 1

    def __del__(self) -> None:
        Alive.count -= 1


def tensor_of(values: np.ndarray) -> DeviceTensor:
    """A tensor in the memory of the CPU, which is a device of DLPack's like any other."""
    place = (CPU_DEVICE, 0)
    return DeviceTensor(values.ctypes.data, values.shape, values.dtype, place, Alive(values))


@pytest.mark.parametrize("dtype", ["f4", "f2", "i8", "i4", "i1", "u1", "?"])
def test_others_take_a_tensor_without_a_copy_and_give_it_back(dtype: str) -> None:
    values = np.arange(6).reshape(2, 3).astype(dtype)
    taken: Any = np.from_dlpack(tensor_of(values))
    gc.collect()
    assert Alive.count == 1
    assert (taken.ctypes.data, taken.dtype) == (values.ctypes.data, values.dtype)
    np.testing.assert_array_equal(taken, values)
    del taken
    gc.collect()
    assert (Alive.count, device_tensor._shared) == (0, {})


def test_torch_takes_a_tensor_and_writes_to_the_same_memory() -> None:
    torch = pytest.importorskip("torch")
    values = np.zeros((2, 3), np.float32)
    taken = torch.from_dlpack(tensor_of(values))
    taken[1, 2] = 5
    assert values[1, 2] == 5
    bits = np.array([0x3F80, 0xC000], np.uint16)  # 1 and -2 in bfloat16
    assert torch.from_dlpack(tensor_of(bits)).tolist() == [1.0, -2.0]
    del taken
    gc.collect()
    assert Alive.count == 0


def test_a_capsule_that_nobody_takes_gives_the_tensor_back() -> None:
    capsule = tensor_of(np.zeros(3, np.float32)).__dlpack__()
    assert Alive.count == 1
    del capsule
    assert (Alive.count, device_tensor._shared) == (0, {})


def test_a_tensor_is_not_copied_elsewhere() -> None:
    tensor = tensor_of(np.zeros(3, np.float32))
    for asked in ({"copy": True}, {"dl_device": (2, 0)}):
        with pytest.raises(BufferError, match="shared where it is"):
            tensor.__dlpack__(**asked)


class Given:
    """A tensor of another library."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __dlpack__(self, *, stream: int) -> Any:
        assert stream == 5
        return self.values.__dlpack__()


def test_a_tensor_of_another_library_is_taken_where_it_is() -> None:
    values = np.arange(12, dtype=np.int64).reshape(3, 4)
    taken = DeviceTensor.of("ids", Given(values[1:]), 5)
    assert taken.address == values.ctypes.data + 32
    assert (taken.shape, taken.dtype, taken.ndim, taken.nbytes) == ((2, 4), np.int64, 2, 64)
    assert ctypes.c_int64.from_address(taken.address).value == 4


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.zeros((4, 4))[:, ::2].astype("f4")[::2], "the input 'x' is not contiguous"),
        (np.zeros((2, 3), np.float64), "the input 'x' has a type that no engine reads"),
    ],
)
def test_a_tensor_that_no_engine_could_read(values: np.ndarray, told: str) -> None:
    with pytest.raises(BadInput, match=told):
        DeviceTensor.of("x", Given(values), 5)


def test_a_tensor_that_its_library_does_not_share() -> None:
    class Refuses:
        def __dlpack__(self, *, stream: int) -> Any:
            raise BufferError("it requires a gradient\nand more")

    with pytest.raises(BadInput, match=r"'x' cannot be shared: it requires a gradient\. Give"):
        DeviceTensor.of("x", Refuses(), 5)


def test_what_is_on_the_device() -> None:
    assert not on_device(np.zeros(1))
    assert not on_device(None)
    assert on_device(DeviceTensor(1, (1,), np.dtype("f4"), (2, 0), None))
