"""Events and frames of a run: what they contain, when callbacks get them, and how much is kept."""

import dataclasses
import json
import logging
import sys
import time
from typing import Any

import matplotlib as mpl
import pandas as pd
import pytest
import torch
from torch import nn

from tamiyo.host import AdaptationEvent, EventKind, FrameScalars
from tamiyo.host._history.history import EVENTS_KEPT, FRAMES_KEPT, History
from tamiyo.host._history.recorder import RunRecorder
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.topics import MODEL_PERFORMANCE
from tests.support.runs import Run, decision, network, run


def happened(made: Run) -> list[tuple[int, str]]:
    return [(event.step, str(event.kind)) for event in made.handle.history.events]


def test_a_kernel_comes_and_goes() -> None:
    made = run()
    made.train(1)
    request = made.load()
    made.train(6)
    made.transport.decide("unload_kernel", layer="0")
    made.train(6)
    made.handle.close()
    assert happened(made) == [
        (2, "executed"), (2, "kernel_added"), (8, "executed"), (12, "kernel_removed"), (13, "closed")
    ]  # fmt: skip
    loaded, added, unloaded, removed, closed = made.handle.history.events
    kernel = added.parameters_after - 83
    assert kernel > 0
    assert dataclasses.replace(loaded, time_ms=0) == AdaptationEvent(
        kind=loaded.kind, run_id="run-1", step=2, time_ms=0, parameters_before=83, parameters_after=83 + kernel,
        layer_id="0", decision="load_kernel", decision_id=request.decision_id, blueprint="parallel_expansion",
        kernel_id=request.kernel_id, loss_before=loaded.loss_before, loss_after=loaded.loss_after,
    )  # fmt: skip
    assert loaded.loss_before is not None
    assert loaded.loss_after == pytest.approx(loaded.loss_before)
    for event in (added, removed):
        assert (event.layer_id, event.seed_id, event.blueprint) == ("0", 0, "parallel_expansion")
        assert event.kernel_id == request.kernel_id
    assert (added.parameters_before, removed.parameters_before, removed.parameters_after) == (83, 83 + kernel, 83)
    assert (unloaded.decision, unloaded.parameters_before, unloaded.parameters_after) == (
        "unload_kernel", 83 + kernel, 83 + kernel
    )  # fmt: skip
    assert closed.layer_id is None


def test_refusals_and_failures_have_their_reason() -> None:
    made = run(protected=["3"], compile_timeout_s=1e-9)
    made.transport.decide("load_kernel", layer="3", blueprint="low_rank")
    made.transport.send(decision("never-compiled", layer="0"))
    made.train(1)
    refused, failed = made.handle.history.events
    assert (refused.kind, refused.layer_id, refused.reason) == ("refused", "3", "protected_layer: layer 3 is protected")
    assert (failed.kind, failed.reason[:10]) == ("failed", "no_kernel:")
    assert refused.parameters_before == refused.parameters_after == 83


def test_a_kernel_that_fails_is_an_event_after_the_step() -> None:
    made = run()
    made.load()
    made.train(6)
    seen: list[tuple[str, int]] = []
    made.handle.on_event(lambda event: seen.append((event.kind, len(made.losses))))
    (kernel,) = made.layer().kernels.values()
    hook = kernel.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))
    made.train(1)
    hook.remove()
    assert seen[0] == ("kernel_error", 7)
    event = made.handle.history.events[2]
    assert (event.layer_id, event.seed_id, event.blueprint) == ("0", 0, "parallel_expansion")
    assert event.reason.startswith("RuntimeError: broken; ")


def test_callbacks_see_the_network_after_the_change() -> None:
    """What weight averaging needs: the parameters are those that the next step trains."""
    made = run()
    averaged: dict[str, torch.Tensor] = {}

    def follow(event: AdaptationEvent) -> None:
        if event.kind in ("kernel_added", "kernel_removed"):
            averaged.clear()
            averaged.update({name: value.detach().clone() for name, value in made.model.named_parameters()})

    made.handle.on_event(follow)
    made.load()
    made.train(1)
    assert averaged.keys() == dict(made.model.named_parameters()).keys()
    assert len(averaged) > len(list(network().parameters()))
    made.train(5)
    made.transport.decide("unload_kernel", layer="0")
    made.train(6)
    assert averaged.keys() == dict(made.model.named_parameters()).keys()


def test_a_restored_state_is_a_change_of_the_network() -> None:
    first = run()
    first.load()
    first.train(3)
    second = run(network(seed=7))
    seen: list[AdaptationEvent] = []
    second.handle.on_event(seen.append)
    second.handle.load_state_dict(first.handle.state_dict())
    assert [(event.kind, event.step, event.layer_id) for event in seen] == [("kernel_added", 3, "0")]
    second.handle.load_state_dict(run().handle.state_dict())
    assert [event.kind for event in seen] == ["kernel_added", "kernel_removed"]


def test_an_error_in_a_callback_does_not_end_training(caplog: pytest.LogCaptureFixture) -> None:
    made = run()
    reached: list[int] = []

    def broken(frame: FrameScalars) -> None:
        raise ValueError("disk full")

    made.handle.on_frame(broken)
    made.handle.on_frame(lambda frame: reached.append(frame.step))
    made.train(6)
    made.handle.close()
    assert reached == [2, 4, 6, 6]
    assert made.handle.stats.errors == 0
    levels = [record.levelno for record in caplog.records if "disk full" in record.message]
    assert levels.count(logging.WARNING) == 1


def test_a_callback_ends_when_it_is_removed_even_from_inside() -> None:
    made = run()
    seen: list[int] = []

    def once(frame: FrameScalars) -> None:
        seen.append(frame.step)
        remove()
        remove()

    remove = made.handle.on_frame(once)
    made.train(6)
    assert seen == [2]


def test_the_same_callback_twice_is_called_twice() -> None:
    made = run()
    seen: list[FrameScalars] = []
    removes = [made.handle.on_frame(seen.append) for _ in range(2)]
    made.train(2)
    removes[0]()
    made.train(2)
    assert [frame.step for frame in seen] == [2, 2, 4]


def test_callbacks_may_close_the_run() -> None:
    made = run()
    made.handle.on_event(lambda event: made.handle.close())
    made.load()
    made.train(3)
    assert happened(made) == [(1, "executed"), (1, "kernel_added"), (1, "closed")]


def test_the_time_of_callbacks_is_nobodys() -> None:
    made = run()
    made.train(2)
    before = made.handle.stats
    made.handle.on_frame(lambda frame: time.sleep(0.5))
    made.train(3)
    after = made.handle.stats
    assert after.sdk_seconds + after.training_seconds - before.sdk_seconds - before.training_seconds < 0.4


def test_frames_are_those_that_are_published() -> None:
    made = run()
    made.train(5)
    made.handle.validate(lambda: (0.5, 0.75))
    made.train(2)
    made.handle.close()
    published = made.records(MODEL_PERFORMANCE)
    assert [dataclasses.asdict(frame) for frame in made.handle.history.frames] == [
        {name: getattr(each, name, 0) for name in FrameScalars.__slots__} | {"time_ms": frame.time_ms}
        for each, frame in zip(published, made.handle.history.frames, strict=True)
    ]
    assert [frame.validation_loss for frame in made.handle.history.frames] == [None, None, 0.5, None]


def test_records_become_a_table_and_json() -> None:
    made = run()
    made.load()
    made.train(4)
    frames = pd.DataFrame(made.handle.history.to_records())
    assert list(frames["step"]) == [2, 4]
    events = made.handle.history.to_records("events")
    assert json.loads(json.dumps(events)) == events
    assert list(pd.DataFrame(events)["kind"]) == ["executed", "kernel_added"]
    with pytest.raises(KeyError):
        made.handle.history.to_records("steps")  # type: ignore[arg-type]


def frame(step: int, **more: Any) -> FrameScalars:
    zeros: dict[str, Any] = dict.fromkeys(FrameScalars.__slots__, 0)
    empty = {"train_accuracy": None, "validation_loss": None, "validation_accuracy": None}
    return FrameScalars(**zeros | empty | {"step": step, "train_loss": float(step)} | more)


def test_memory_is_bounded_and_the_frames_cover_the_run_evenly() -> None:
    history = History()
    count = 5 * FRAMES_KEPT + 3
    for step in range(count):
        history.add(frame(step, validation_loss=float(step)) if step % 512 == 100 else frame(step))
    frames = history.frames
    assert FRAMES_KEPT / 2 <= len(frames) <= FRAMES_KEPT
    assert [each.step for each in frames] == [*range(7, count, 8), count - 1]
    assert [each.train_loss for each in frames[:2]] == [3.5, 11.5]
    assert frames[-1].train_loss == count - 2
    assert [each.validation_loss for each in frames if each.validation_loss is not None] == [*range(100, count, 512)]


def test_the_newest_events_are_kept() -> None:
    history = History()
    for step in range(EVENTS_KEPT + 5):
        history.add(
            AdaptationEvent(
                kind=EventKind.CLOSED, run_id="r", step=step, time_ms=0, parameters_before=0, parameters_after=0
            )
        )
    assert [history.events[0].step, history.events[-1].step] == [5, EVENTS_KEPT + 4]


def test_events_read_well() -> None:
    made = run(protected=["3"])
    made.load()
    made.transport.decide("load_kernel", layer="3", blueprint="low_rank")
    made.train(1)
    refused, executed, added = map(str, made.handle.history.events)
    assert executed == "step 1: load_kernel parallel_expansion at layer 0: executed, +243 parameters"
    assert refused == ("step 1: load_kernel low_rank at layer 3: refused (protected_layer: layer 3 is protected)")
    assert added == "step 1: kernel_added parallel_expansion at layer 0, +243 parameters"


def test_the_table_shows_the_run_and_escapes_its_name() -> None:
    made = run()
    made.handle.run_id = "<b>&"
    made.load()
    made.train(2)
    html = made.handle._repr_html_()
    assert "&lt;b&gt;&amp;" in html
    assert "<b>" not in html
    for part in ("326 (243 in kernels)", "1 executed, 0 refused, 0 failed", "yes: memory"):
        assert part in html
    assert repr(made.handle) == "Handle(run_id='<b>&', step=2, layers=3, connected)"
    made.handle.close()
    assert repr(made.handle).endswith("closed)")


def test_the_plot_has_the_losses_and_marks_the_adaptations(monkeypatch: pytest.MonkeyPatch) -> None:
    mpl.use("agg")
    made = run(protected=["3"])
    made.train(2)
    made.load()
    made.transport.decide("load_kernel", layer="3", blueprint="low_rank")
    made.handle.validate(lambda: 0.5)
    made.train(4)
    axes = made.handle.plot()
    curves = {str(line.get_label()): list(line.get_xdata()) for line in axes.lines}  # type: ignore[arg-type]
    assert (curves["training"], curves["validation"]) == ([2, 4, 6], [4])
    texts = [text.get_text().strip() for text in axes.texts]
    assert texts == ["load_kernel low_rank at 3: refused", "load_kernel parallel_expansion at 0"]
    assert made.handle.plot(axes) is axes
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ConfigurationError, match=r"esper-tamiyo\[plot\]"):
        made.handle.plot()


def test_a_run_without_any_frame_can_be_shown() -> None:
    mpl.use("agg")
    made = run(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)))
    assert not made.handle.plot().lines
    assert made.handle.history.to_records() == []
    assert isinstance(made.handle._recorder, RunRecorder)
