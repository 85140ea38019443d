"""What a forward pass costs, by a fixed rule: told by a pretended clock, a pretended GPU, and this process's memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from transfergrid.store.profiles import Passes, Profile
from transfergrid.training import profiling
from transfergrid.training.profiling import BATCHES, SINGLE, AllocatedOn, GrownBy, Rule, profile, timed

CPU = torch.device("cpu")


class NoMemory:
    def reset(self) -> None: ...
    def peak_mib(self) -> float | None:
        return 7.0


class Clock:
    """Passes take these seconds, one after the other, and then the last of them for ever."""

    def __init__(self, *seconds: float) -> None:
        self.now_s, self._seconds, self.passes = 100.0, list(seconds), 0

    def __call__(self) -> float:
        return self.now_s

    def once(self) -> None:
        self.now_s += self._seconds[min(self.passes, len(self._seconds) - 1)]
        self.passes += 1

    def timed(self, rule: Rule, batch_size: int = 1) -> Passes:
        return timed(self.once, batch_size, rule, NoMemory(), now=self)


def test_a_fast_network_is_passed_for_its_seconds_and_a_slow_one_for_its_passes() -> None:
    fast, slow = Clock(0.125).timed(SINGLE), Clock(4.0).timed(SINGLE)
    assert (fast.warm_up, fast.passes, fast.median_s) == (4, 20, 0.125)  # 0.5 s, then 2.5 s for 20 passes
    assert (slow.warm_up, slow.passes, slow.median_s) == (3, 20, 4.0)
    assert Clock(0.0625).timed(SINGLE).passes == 32
    assert Clock(0.25).timed(BATCHES, 64).images_per_s == 256.0
    assert (Clock(3.0).timed(BATCHES).warm_up, Clock(3.0).timed(BATCHES).passes) == (1, 5)


def test_warm_up_is_told_apart_and_one_slow_pass_moves_no_median() -> None:
    clock = Clock(9.0, 1.0, 1.0, *(1.0, 2.0, 3.0, 4.0, 50.0))
    found = clock.timed(Rule(passes=5, seconds=0.0, warm_up_passes=3, warm_up_s=0.0))
    assert (found.first_s, found.warm_up, found.passes) == (9.0, 3, 5)
    assert (found.q1_s, found.median_s, found.q3_s, found.memory_mib) == (2.0, 3.0, 4.0, 7.0)
    assert clock.passes == found.warm_up + found.passes


class Counting(nn.Module):
    """Notes what it is fed; two inputs, as a join takes them."""

    def __init__(self, *, room: int = 10_000) -> None:
        super().__init__()
        self.linear, self.room, self.fed = nn.Linear(3, 2), room, list[tuple[int, ...]]()

    def forward(self, one: Tensor, other: Tensor) -> tuple[Tensor, list[Tensor]]:
        assert not self.training and torch.is_inference_mode_enabled()
        if len(one) > self.room:
            raise torch.OutOfMemoryError("no room")
        self.fed.append((len(one), one.shape[-1], other.shape[-1]))
        return self.linear(one.mean((2, 3)) + other.mean((2, 3))), []


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SINGLE", "BATCHES"):
        monkeypatch.setattr(profiling, name, Rule(passes=2, seconds=0.0, warm_up_passes=1, warm_up_s=0.0))


def measured(network: nn.Module) -> Profile:
    memory = NoMemory()
    return profile(network, (8, 16), CPU, precision="fp32", memory=memory, sought_gpu=False)


@pytest.mark.usefixtures("short")
def test_every_input_of_the_network_is_fed_in_each_batch_size() -> None:
    network = Counting().train()
    found = measured(network)
    assert [passes.batch_size for passes in found.passes] == [1, 4, 16, 64, 256] and found.sizes_px == (8, 16)
    assert set(network.fed) == {(size, 8, 16) for size in profiling.BATCH_SIZES}
    assert found.single is found.passes[0] and found.fastest.images_per_s == max(p.images_per_s for p in found.passes)
    assert (found.kind, found.threads, found.precision) == ("cpu", torch.get_num_threads(), "fp32")
    assert network.training and found.device and found.measured.endswith("+00:00")


@pytest.mark.usefixtures("short")
def test_batches_for_which_a_gpu_has_no_room_are_left_out_but_a_single_image_must_fit() -> None:
    assert [passes.batch_size for passes in measured(Counting(room=5)).passes] == [1, 4]
    with pytest.raises(torch.OutOfMemoryError):
        measured(Counting(room=0))


def test_a_batch_that_would_take_longer_than_two_seconds_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def pretended(once: object, batch_size: int, rule: Rule, memory: object) -> Passes:
        seconds = {"median_s": 0.1 * batch_size, "q1_s": 0.1, "q3_s": 0.1, "first_s": 0.1}
        return Passes(batch_size=batch_size, passes=rule.passes, warm_up=1, memory_mib=None, **seconds)

    monkeypatch.setattr(profiling, "timed", pretended)
    found = measured(Counting())
    assert [(p.batch_size, p.passes) for p in found.passes] == [(1, 20), (4, 5), (16, 5)]


# ------------------------------------------------------------------------------------------------------------- memory
def test_memory_on_a_cpu_is_what_the_process_grew_by_at_its_peak_since_the_reset() -> None:
    grown = GrownBy()
    assert grown.peak_mib() is None  # no peak is told before the first reset
    kept = torch.ones(8 * 2**20)  # 32 MiB
    torch.ones(48 * 2**20)  # 192 MiB, dropped before the reset
    grown.reset()
    torch.ones(16 * 2**20)  # 64 MiB, dropped again
    peak_mib = grown.peak_mib()
    assert peak_mib is not None and 85 < peak_mib < 150 and len(kept) > 0


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    told: list[str] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: told.append(f"reset {device}"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**20)
    yield told


def test_memory_on_a_gpu_is_the_most_that_torch_allocated_since_the_reset(pretended_gpu: list[str]) -> None:
    memory = AllocatedOn(torch.device("cuda", 1))
    memory.reset()
    assert pretended_gpu == ["reset cuda:1"] and memory.peak_mib() == 3.0


@pytest.mark.gpu
@pytest.mark.usefixtures("short")
def test_a_real_gpu_is_measured_under_its_own_name() -> None:
    device = torch.device("cuda")
    network, memory = Counting().to(device), AllocatedOn(device)
    found = profile(network, (8, 16), device, precision="bf16", memory=memory, sought_gpu=True)
    assert (found.kind, found.device) == ("gpu", torch.cuda.get_device_name(device))
    assert all(passes.memory_mib is not None and passes.memory_mib > 0 for passes in found.passes)
