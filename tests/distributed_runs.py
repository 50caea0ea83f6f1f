"""Runs scenarios in worlds of several processes and prints what each rank saw, as JSON.

One process imports torch and forks the ranks of every world, so that many worlds are affordable.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import gc
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import prunus
import tagging
from prunus._common.files import tensors_digest
from prunus._common.timing import interleaved
from prunus.deployment import judge
from prunus.methods.catalog import names
from prunus.methods.traits import trait
from prunus.progressive import deploy_step as serving
from prunus.progressive import latency_target
from prunus.progressive.engine import PruningEngine
from prunus.progressive.scoring import mean_of, scored

PATIENCE = 600.0  # seconds for a world; a rank that is still there is killed


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def world(ranks: int, work: Callable[[], Any]) -> list[Any]:
    """What ``work`` returned on every rank, its error as text, or the signal that ended it."""
    with tempfile.TemporaryDirectory() as place:
        pipes = []
        for number in range(ranks):
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(reading)
                _be(number, ranks, place, work, writing)
            os.close(writing)
            pipes.append((child, reading))
        deadline = time.monotonic() + PATIENCE
        return [_heard(child, reading, deadline) for child, reading in pipes]


def _be(number: int, ranks: int, place: str, work: Callable[[], Any], writing: int) -> None:
    """A rank, to its end."""
    said: Any = None
    try:
        if ranks > 1:
            dist.init_process_group(
                "gloo", init_method=f"file://{place}/meet", rank=number, world_size=ranks,
                timeout=datetime.timedelta(seconds=PATIENCE / 2),
            )  # fmt: skip
        said = work()
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        if not isinstance(error, prunus.errors.PrunusError):
            traceback.print_exc()
    finally:
        with os.fdopen(writing, "w") as pipe:
            json.dump(said, pipe)
        sys.stderr.flush()
        os._exit(0)


def _heard(child: int, reading: int, deadline: float) -> Any:
    """What a rank said, waiting no longer than to the deadline."""
    ended, status = 0, 0
    os.set_blocking(reading, False)
    text = b""
    while not ended:
        ended, status = os.waitpid(child, os.WNOHANG)
        with contextlib.suppress(BlockingIOError):
            text += os.read(reading, 1 << 20)
        if not ended:
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                deadline = float("inf")
            time.sleep(0.005)
    while part := os.read(reading, 1 << 20):
        text += part
    os.close(reading)
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else json.loads(text)


def digest(tensors: Mapping[str, Tensor]) -> str:
    return tensors_digest({n.removeprefix("module."): t for n, t in tensors.items()})[:16]


class Net(nn.Module):
    """With buffers that depend on what a rank sees, and random numbers in training."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 24)
        self.norm = nn.BatchNorm1d(24)
        self.second = nn.Linear(24, 24)
        self.drop = nn.Dropout(0.2)
        self.last = nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        return self.last(self.drop(self.second(x).relu()))


def net() -> Net:
    torch.manual_seed(5)
    return Net()


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(144, 8, generator=generator)
    return TensorDataset(inputs, (inputs.sum(1) > 0).long())


def loss(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def calibration() -> list[Any]:
    """Twelve batches, shared out: rank r has every ``size()``-th."""
    inputs, classes = data().tensors
    batches = list(zip(inputs.split(12), classes.split(12), strict=True))
    return batches[rank() :: size()]


def loader() -> DataLoader[Any]:
    sampler = DistributedSampler(data(), size(), rank(), seed=1)
    return DataLoader(data(), batch_size=12, sampler=sampler)


def evaluate(model: nn.Module) -> float:
    """On this rank's part only: prunus takes the mean."""
    inputs, classes = (t[rank() :: size()] for t in data().tensors)
    return float((model(inputs).argmax(1) == classes).float().mean())


def train(model: nn.Module, run: prunus.progressive.phase.Run) -> None:
    # Of three ranks, whose sum depends on the order: buckets that are not sorted anew after a step.
    ddp = DistributedDataParallel(model, find_unused_parameters=size() > 2)
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=0.01)
    run.attach(optimizer)
    if run.round == 0 and run.done == 0:
        torch.manual_seed(100 + rank())  # dropout of each rank's own
    ddp.train()
    for batch in run.batches(loader()):
        optimizer.zero_grad()
        loss(ddp, batch).backward()
        optimizer.step()


ROUNDS = {
    "dense": "1ep", "retrain": "1ep", "rounds": 3, "target": 0.8, "schedule": "linear",
    "criterion": "fisher_running", "guard": {"max_drop": 0.9}, "snapshot": "3it",
}  # fmt: skip
SHRINKING = {
    **ROUNDS, "rounds": 2, "structure": "channel", "target": {"max_macs": 0.3},
    "compact": "every_round",
    "criterion": "magnitude", "allocation": "per_cost",
}  # fmt: skip


def outcome(result: prunus.Result) -> dict[str, Any]:
    return {
        "weights": digest(result.model.state_dict()),
        "masks": digest(result.masks),
        "metrics": [r.metric for r in result.rounds],
        "verdicts": [r.verdict for r in result.rounds],
        "test": result.test,
        "params": sum(p.numel() for p in result.model.parameters()),
    }


def whole(recipe: Mapping[str, Any], folder: Path | None, **others: Any) -> dict[str, Any]:
    model = net()
    given = {"train": train, "evaluate": evaluate, "test": evaluate, **others}
    return outcome(prunus.prune(model, dict(recipe), folder=folder,
                                example=torch.ones(2, 8), **given))  # fmt: skip


# --- scenarios, each run by every rank


def chosen() -> dict[str, str]:
    """Masks from the same weights and signals, by criterion and structure."""
    found = {}
    cases = {
        "magnitude": {},
        "sensitivity": {"criterion": "sensitivity"},
        "fisher": {"criterion": "fisher", "structure": "neuron"},
        "random": {"criterion": "random"},
        "channels": {"structure": "channel", "criterion": "sensitivity"},
        "smaller": {"structure": "channel", "criterion": "sensitivity", "compact": "end"},
    }
    if size() > 2:
        del cases["smaller"]  # two ranks do what three would
    for name, values in cases.items():
        model: nn.Module = net()
        result = prunus.prune(model, {"target": 0.6, **values}, calibration=calibration(),
                              loss=loss, example=torch.ones(2, 8))  # fmt: skip
        found[name] = digest({**result.masks, **result.model.state_dict()})
        if name in ("sensitivity", "random") and size() > 1:
            wrapped = DistributedDataParallel(net())
            prunus.prune(wrapped, {"target": 0.6, **values}, calibration=calibration(), loss=loss)
            same = digest(wrapped.module.state_dict()) == digest(model.state_dict())
            found[name] += "" if same else " and others when wrapped"
    pruner = PruningEngine(net(), {"target": 0.6, "criterion": "fisher_running"})
    torch.manual_seed(7)
    for name, weight in pruner.model.named_parameters():
        mean = torch.rand(weight.shape).bfloat16().float()  # few bits: no part of it is rounded
        sign = torch.randint(2, weight.shape) * 2 - 1
        pruner.running.tensors[name] = mean * (1 + sign * (rank() - (size() - 1) / 2) / 2)
    found["fisher_running"] = digest(pruner.choose(1.0))
    return found


def by_calibration() -> dict[str, str]:
    """Masks of every criterion that reads calibration data, of which each rank has a part."""
    found = {}
    for name in names("criteria"):
        if trait("criteria", name, "CALIBRATION"):
            way = "channel" if trait("criteria", name, "BY_UNIT") else "weight"
            recipe = {"target": 0.5, "criterion": name, "structure": way}
            model = net()
            result = prunus.prune(model, recipe, calibration=calibration(), loss=loss,
                                  example=torch.ones(2, 8))  # fmt: skip
            found[name] = digest(result.masks)
    return found


def by_figure() -> float | None:
    """A figure of counts of which each rank has some rows; a lambda cannot be sent to another."""
    rows = torch.tensor([[1, 2], [0, 6], [3, 4]])[rank() :: size()]
    own = prunus.Scores(rows, figure=lambda r: r[:, 0].sum() / r[:, 1].sum())
    return mean_of(scored(lambda model: own, net(), "evaluate"), "evaluate")


def tagged() -> dict[str, Any]:
    """Batches that are dictionaries, a loss inside the model, tuples, a figure of the whole set."""
    shares = [tagging.part(whole, rank(), size()) for whole in (tagging.TRAIN, tagging.HELD)]

    def train(model: nn.Module, run: prunus.progressive.phase.Run) -> None:
        ddp = DistributedDataParallel(model) if size() > 1 else model
        own = tagging.optimizer(ddp)
        run.attach(own)
        for batch in run.batches(shares[0]):
            own.zero_grad()
            tagging.loss(ddp, batch).backward()
            own.step()

    result = prunus.prune(
        tagging.network(), tagging.RECIPE, train=train, calibration=shares[0], loss=tagging.loss,
        evaluate=lambda m: tagging.errors(m, shares[1]), example=tagging.EXAMPLE,
    )  # fmt: skip
    return outcome(result)


def own_loop(view: bool) -> dict[str, Any]:
    """A loop with a wrapped model, gradients accumulated over two batches and clipped."""
    ddp = DistributedDataParallel(net(), gradient_as_bucket_view=view)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    pruner = prunus.Pruner(
        ddp, {"target": 0.8, "criterion": "fisher_running", "schedule": {"name": "linear",
              "every": "3it"}}, optimizer, steps=12,
    )  # fmt: skip
    torch.manual_seed(100 + rank())
    batches = list(loader()) * 12
    leaks, norms, sparsities = 0, [], []
    for step in range(12):
        optimizer.zero_grad()
        with ddp.no_sync():
            loss(ddp, batches[2 * step]).backward()
        loss(ddp, batches[2 * step + 1]).backward()
        for name, mask in pruner.masks.items():
            gradient = ddp.get_parameter(name).grad
            assert gradient is not None
            leaks += int((gradient[~mask.expand(gradient.shape)] != 0).sum())
        norms.append(float(nn.utils.clip_grad_norm_(ddp.parameters(), 1.0)))
        optimizer.step()
        sparsities.append(pruner.sparsity)
    zeros = {n: bool((ddp.get_parameter(n)[~m] == 0).all()) for n, m in pruner.masks.items()}
    return {
        "leaks": leaks,
        "norms": norms,
        "sparsities": sparsities,
        "zeros": all(zeros.values()),
        "masks": digest(pruner.masks),
        "weights": digest(dict(ddp.named_parameters())),
    }


def shrinks_and_grows() -> dict[str, Any]:
    """A rejected round makes the model larger again; old wrappers are still alive."""
    kept: list[nn.Module] = []
    seen = []

    def judged(model: nn.Module) -> float:
        return 0.0 if len(seen) == 3 else 1.0

    def trained(model: nn.Module, run: prunus.progressive.phase.Run) -> None:
        ddp = DistributedDataParallel(model)
        kept.append(ddp)
        seen.append(sum(p.numel() for p in model.parameters()))
        optimizer = torch.optim.AdamW(ddp.parameters(), lr=0.01)
        run.attach(optimizer)
        for batch in run.batches(loader()):
            optimizer.zero_grad()
            loss(ddp, batch).backward()
            optimizer.step()

    recipe = {**SHRINKING, "guard": {"max_drop": 0.1}}
    made = whole(recipe, None, train=trained, evaluate=judged)
    return {**made, "trained": seen}


def refused() -> dict[str, str]:
    """What is caught, and how it is said."""
    found = {}

    def case(name: str, work: Callable[[], Any]) -> None:
        try:
            work()
            found[name] = ""
        except prunus.errors.PrunusError as error:
            found[name] = f"{type(error).__name__}: {error}"

    def other(model: nn.Module) -> nn.Module:
        with torch.no_grad():
            model.get_parameter("second.weight").mul_(1 + 9 * float(rank() == size() - 1))
        return model

    def unwrapped(model: nn.Module, run: prunus.progressive.phase.Run) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run.attach(optimizer)
        for batch in run.batches(loader()):
            loss(model, batch).backward()
            optimizer.step()

    def bad_batch() -> list[Any]:
        return [(torch.ones(2, 8) * (float("nan") if rank() else 1), torch.ones(2).long())]

    bare, example = {k: v for k, v in ROUNDS.items() if k != "guard"}, torch.ones(2, 8)
    case("weights", lambda: prunus.prune(other(net()), {"target": 0.5}))
    case("masks", lambda: PruningEngine(other(net()), {"target": 0.5}).cut(1.0))
    case("not wrapped", lambda: whole(ROUNDS, None, train=unwrapped))
    case("evaluate", lambda: whole(bare, None, evaluate=evaluate if rank() == 0 else None))
    values: dict[str, Any] = {"target": 0.5, "criterion": "fisher"}
    case("calibration", lambda: prunus.prune(net(), values, calibration=bad_batch(), loss=loss))
    small = {"target": 0.5, "structure": "channel", "compact": "end"}
    wrapped = DistributedDataParallel(net())
    case("wrapped", lambda: prunus.prune(wrapped, small, example=example))
    packed = {**small, "quantize": "int8"}
    given = {"calibration": calibration(), "loss": loss, "example": example}
    case("int8", lambda: prunus.prune(net(), packed, **given))

    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.optim import ZeroRedundancyOptimizer

    mesh = dist.init_device_mesh("cpu", (size(),))
    case("FSDP2", lambda: prunus.prune(fully_shard(net(), mesh=mesh), {"target": 0.5}))
    inside = FullyShardedDataParallel(net(), device_id=torch.device("cpu"))
    case("FSDP1", lambda: prunus.prune(inside, {"target": 0.5}))
    model = net()
    parts = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.1)
    case("ZeRO", lambda: prunus.Pruner(model, {"target": 0.5}, parts, steps=4))
    return found


def limited() -> list[Any]:
    """A run that has no time left after its first steps, and the models that it judged."""
    judged = []

    def remembered(model: nn.Module) -> float:
        judged.append(digest(model.state_dict()))
        return evaluate(model)

    made = whole({**ROUNDS, "limit": "0.001min"}, None, evaluate=remembered, test=None)
    return [judged, made["metrics"]]


def deployed() -> dict[str, Any]:
    """A latency as the target, by a clock that tells each rank something else."""
    latency_target.SECONDS = serving.SECONDS = 0.01
    judge.interleaved = lambda calls, seconds: interleaved(calls, seconds=0.01)
    real = latency_target._Clock._timed

    def timed(clock: Any, masks: Any) -> tuple[float, float]:
        real(clock, masks)
        return 1.0 if masks is None else 0.49 if rank() == 0 else 0.1, 1.0

    latency_target._Clock._timed = timed  # type: ignore[method-assign]
    recipe = {**SHRINKING, "rounds": 1, "target": {"max_latency_ms": 0.5}, "deploy": "eager"}
    result = prunus.prune(net(), recipe, train=train, evaluate=evaluate, example=torch.ones(2, 8))
    made = result.deployment
    return {
        **outcome(result),
        "known": [bool(r.achieved) for r in result.rounds],
        "latency": [dict(r.latency) for r in result.rounds],
        "why": result.reason,
        "deployed": None if made is None else made.runtime,
    }


def twice(recipe: Mapping[str, Any], folder: Path) -> list[Any]:
    """A run, and the same call again when it is finished."""
    return [whole(recipe, folder), whole(recipe, folder)]


def stopped_and_killed(recipe: Mapping[str, Any], folder: Path, victim: int) -> Any:
    """Only the last rank is asked to stop, in a round; going on, one is killed in the next."""
    asked, batches = [0], [0]

    def stop() -> bool:
        asked[0] += 1
        return asked[0] == 7

    def deadly(model: nn.Module, run: prunus.progressive.phase.Run) -> None:
        given = run.batches

        def counted(loader: Any) -> Any:
            for batch in given(loader):
                batches[0] += 1
                if batches[0] == 7 and rank() == victim:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield batch

        run.batches = counted  # type: ignore[method-assign]
        train(model, run)

    try:
        whole(recipe, folder, **({"should_stop": stop} if rank() == size() - 1 else {}))
        return "not stopped"
    except prunus.errors.Interrupted:
        (folder / f"stopped-{rank()}").touch()
    return whole(recipe, folder, train=deadly)


def taught() -> dict[str, Any]:
    """A pruned model learns its dense one's likeliest classes; ranks have parts of each batch."""
    torch.manual_seed(5)
    dense = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 6)).eval()
    small = copy.deepcopy(dense)
    masks = {n: p.abs() > p.abs().median() for n, p in small.named_parameters() if p.dim() > 1}
    model = DistributedDataParallel(small) if size() > 1 else small
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    stop = prunus.enforce(small, masks, optimizer)

    def lessons(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
        losses = []
        for batch in data().tensors[0].split(24):
            optimizer.zero_grad()
            own = batch[rank() :: size()]
            part = prunus.distill(model, dense, own, weight=1.0, top=3)
            part.backward()
            optimizer.step()
            losses.append(mean_over_ranks(part))
        return losses

    losses = lessons(model, optimizer)
    stop()
    with prunus.low_rank(small, 2, masks=masks) as numbers:  # and again, by few numbers
        model = DistributedDataParallel(small) if size() > 1 else small
        losses += lessons(model, torch.optim.SGD(numbers, 0.3))
    state = small.state_dict()
    gone = all(bool((state[n][~mask] == 0).all()) for n, mask in masks.items())
    last = prunus.distill(small, dense, data().tensors[0], weight=1.0, top=3, hidden=["2"])
    return {"losses": losses, "zeros": gone, "last": last.item(), "weights": digest(state),
            "values": state["3.weight"].flatten().tolist()}  # fmt: skip


def mean_over_ranks(value: Tensor) -> float:
    found = value.detach().clone()
    if size() > 1:
        dist.all_reduce(found)
    return float(found) / size()


def warm() -> None:
    """Imports that every rank would do again."""
    import torch.distributed.fsdp
    import torch.distributed.optim

    model, example = net(), torch.ones(2, 8)
    prunus.prune(model, {"target": 0.5, "structure": "channel", "compact": "end"}, example=example)
    torch.optim.AdamW(model.parameters()).step()
    gc.freeze()  # ranks look for garbage after each run: in what is their own alone


def main(place: Path) -> dict[str, Any]:
    warm()
    found: dict[str, Any] = {}
    times = found["seconds"] = {}

    def go(name: str, ranks: int, work: Callable[[], Any]) -> list[Any]:
        began = time.monotonic()
        said = world(ranks, work)
        times[f"{name} {ranks}"] = round(time.monotonic() - began, 1)
        print(name, ranks, times, os.times(), file=sys.stderr)
        return said

    found["chosen"] = [go("chosen", n, chosen) for n in (1, 2, 3)]
    rigl = {"name": "rigl", "every": "2it"}
    sparse = {"criterion": "random", "rounds": 1, "retrain": "1ep", "target": 0.7,
              "regrow": rigl}  # fmt: skip
    trades = {**sparse, "criterion": "magnitude", "regrow": {**rigl, "name": "top_kast"}}
    found["regrows"] = [go("regrows", 2, lambda r=r: whole(r, None)) for r in (sparse, trades)]
    found["by_calibration"] = [go("by_calibration", n, by_calibration) for n in (1, 2)]
    found["by_figure"] = [go("by_figure", n, by_figure) for n in (1, 2)]
    found["tagged"] = [go("tagged", n, tagged) for n in (1, 2)]
    found["own_loop"] = [go("own_loop", 2, lambda v=v: own_loop(v)) for v in (False, True)]
    found["shrinks_and_grows"] = go("shrinks_and_grows", 2, shrinks_and_grows)
    found["limited"] = go("limited", 2, limited)
    found["deployed"] = go("deployed", 2, deployed)
    found["refused"] = go("refused", 2, refused)
    found["taught"] = [go("taught", n, taught) for n in (1, 2)]
    for name, recipe, ranks, victim in (("rounds", ROUNDS, 3, 2), ("shrinking", SHRINKING, 2, 0)):
        folder, broken = place / name, place / f"{name} broken"
        found[name] = go(name, ranks, lambda r=recipe, f=folder: twice(r, f))
        died = go("killed", ranks, lambda r=recipe, f=broken, v=victim: stopped_and_killed(r, f, v))
        stops = len([p for p in broken.iterdir() if p.name.startswith("stopped")])
        again = go("resumed", ranks, lambda r=recipe, f=broken: whole(r, f))
        found[f"{name} broken"] = {"died": died, "stops": stops, "again": again}
    return found


if __name__ == "__main__":
    os.fsync = lambda descriptor: None  # type: ignore[assignment]  # the power stays on
    torch.set_num_threads(1)
    print(json.dumps(main(Path(sys.argv[1]))))
