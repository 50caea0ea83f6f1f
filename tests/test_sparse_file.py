"""Packed tensors come back bit by bit; a file is smaller with them, or is the dense one."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import prunus
from helpers import Conv1D, quick, tiny_task
from prunus._common import kernels as native
from prunus._common.files import save_tensors
from prunus.compaction.files.packed import TYPES, pack
from prunus.compaction.files.unpack import unpack, whole

PAGE = Path(__file__).parent.parent / "docs" / "file_format.md"


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def manifest_of(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, "pt") as file:
        return dict(json.loads(file.metadata()["prunus"]))


def sparse(shape: tuple[int, ...], density: float, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.randn(shape) * 50
    values = values > 0 if dtype == torch.bool else values.abs().clamp_min(1).to(dtype)
    return values * (torch.rand(shape) < density)


class Net(nn.Module):
    """Convolution, norm, tied and plain linear layers, buffers of several types."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 24, 5), nn.BatchNorm2d(24)
        self.one, self.two = nn.Linear(96, 96), nn.Linear(96, 96)
        self.two.weight = self.one.weight
        self.out = nn.Linear(96, 7)
        self.register_buffer("table", torch.zeros(40, 40, dtype=torch.int64))
        self.register_buffer("flags", torch.zeros(3000, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().flatten(1)
        return self.out(self.two(self.one(x).relu()).relu())


IMAGES = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def masked(density: float = 0.1) -> Net:
    model = Net()
    model(IMAGES)  # the norm's statistics are no longer 0 and 1
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.masked_fill_(torch.rand(parameter.shape) >= density, 0)
    model.table[3, 4], model.flags[17] = -5, True
    return model.eval()


# --- the encoding


def test_mask_and_values_by_hand() -> None:
    tensor = torch.zeros(30, 30)
    tensor[0, 1], tensor[0, 9], tensor[29, 29] = 5.0, -7.0, 2.5
    stored, entries = pack({"w": tensor})
    assert entries == {"w": {"dtype": "float32", "shape": [30, 30]}}
    assert list(stored) == ["w#mask", "w#values"]
    # bit 1 of byte 0, bit 1 of byte 1, and element 899: bit 3 of byte 112
    assert {i: int(b) for i, b in enumerate(stored["w#mask"]) if b} == {0: 2, 1: 2, 112: 8}
    assert len(stored["w#mask"]) == 113
    assert stored["w#values"].tolist() == [5.0, -7.0, 2.5]


@pytest.mark.parametrize("density", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("dtype", TYPES.values(), ids=str)
def test_every_type_comes_back_bit_by_bit(dtype: torch.dtype, density: float) -> None:
    tensor = sparse((67, 3, 31), density, dtype)
    stored, entries = pack({"w": tensor})
    assert set(entries) == {"w"}
    again = {name: whole(t) for name, t in unpack(stored, entries).items()}
    assert list(again) == ["w"]
    assert (again["w"].dtype, again["w"].shape) == (dtype, tensor.shape)
    assert bits(again["w"]) == bits(tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_minus_zero_nan_and_infinity_come_back(dtype: torch.dtype) -> None:
    tensor = torch.zeros(4000, dtype=dtype)
    tensor[5:9] = torch.tensor([-0.0, torch.nan, torch.inf, -torch.inf])
    stored, entries = pack({"w": tensor})
    assert stored["w#values"].numel() == 4
    assert bits(whole(unpack(stored, entries)["w"])) == bits(tensor)


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(500, dtype=torch.complex64), torch.zeros(0, 3), torch.tensor(0.0),
     torch.zeros(50), torch.rand(64, 64) + 1],
    ids=["complex", "empty", "scalar", "small", "dense"],
)  # fmt: skip
def test_other_tensors_stay_as_they_are(tensor: Tensor) -> None:
    stored, entries = pack({"w": tensor})
    assert entries == {}
    assert stored["w"] is tensor


def test_a_name_that_is_taken_is_not_used_for_a_part() -> None:
    tensors = {"w": torch.zeros(900), "w#mask": torch.ones(2), "v": torch.zeros(900)}
    stored, entries = pack(tensors)
    assert set(entries) == {"v"}
    assert {k: bits(whole(t)) for k, t in unpack(stored, entries).items()} == {
        k: bits(t) for k, t in tensors.items()
    }


@settings(deadline=None, max_examples=60)
@given(
    ones=st.lists(st.booleans(), max_size=200),
    dtype=st.sampled_from([torch.uint8, torch.bfloat16, torch.float32, torch.float64]),
)
def test_kernel_and_numpy_expand_alike(ones: list[bool], dtype: torch.dtype) -> None:
    mask = torch.from_numpy(np.packbits(np.array(ones, bool), bitorder="little"))
    values = torch.arange(1, sum(ones) + 1).to(dtype)
    expected = torch.zeros(len(ones), dtype=dtype)
    expected[torch.tensor(ones, dtype=torch.bool)] = values
    for fill in (native._expand_compiled, native._expand_plainly):
        out = native.room(len(ones), dtype).fill_(9)
        assert fill(mask, values, out)
        assert torch.equal(out, expected)
        assert not fill(mask, torch.cat([values, torch.ones(1, dtype=dtype)]), out)
        assert not (sum(ones) and fill(mask, values[:-1], out))
        if len(ones) % 8:
            past = mask.clone()
            past[-1] |= 128  # a one that belongs to no element
            extra = torch.cat([values, torch.ones(1, dtype=dtype)])
            assert not fill(past, extra, out)
            assert not fill(past, values, out)


def test_the_extension_is_there_where_the_tests_run() -> None:
    """Without it the two of :func:`test_kernel_and_numpy_expand_alike` could not be compared."""
    assert hasattr(native.kernels, "expand")


def test_a_package_without_the_extension_opens_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = masked()
    path = prunus.save(model, tmp_path / "m.safetensors", sparse=True)
    monkeypatch.setattr(native, "kernels", None)
    assert_same(prunus.load(path, Net()), model)


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_values_may_lie_at_any_address(offset: int) -> None:
    raw = torch.zeros(13, dtype=torch.uint8)
    raw[offset : offset + 8] = torch.tensor([1.5, -2.0]).view(torch.uint8)
    values = torch.frombuffer(raw.numpy(), dtype=torch.float32, count=2, offset=offset)
    assert values.data_ptr() % 4 != 0
    mask = torch.tensor([0b100010], dtype=torch.uint8)
    assert native.expand(mask, values, torch.empty(7)).tolist() == [0, 1.5, 0, 0, 0, -2, 0]


@pytest.mark.parametrize(
    ("mask", "values", "message"),
    [(torch.zeros(3, dtype=torch.uint8), torch.zeros(0), "mask of 2 bytes .* not 3 of"),
     (torch.zeros(2, dtype=torch.int8), torch.zeros(0), "not 2 of torch.int8"),
     (torch.zeros(2, dtype=torch.uint8), torch.zeros(0).double(), "torch.float64"),
     (torch.ones(2, dtype=torch.uint8), torch.zeros(1), "must have 1 ones")],
)  # fmt: skip
def test_what_does_not_fit_together_is_not_expanded(
    mask: Tensor, values: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        native.expand(mask, values, torch.empty(16))


# --- files


def assert_same(opened: nn.Module, model: nn.Module) -> None:
    state = model.state_dict()
    assert list(opened.state_dict()) == list(state)
    for name, tensor in opened.state_dict().items():
        assert tensor.dtype == state[name].dtype, name
        assert bits(tensor) == bits(state[name]), name
    assert not opened.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_packed_model_opens_exactly_with_ties_and_buffers(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    model = masked().to(dtype)
    path = prunus.save(model, tmp_path / "m.safetensors", sparse=True)
    written = manifest_of(path)
    assert written["format"] == "prunus compact 2"
    assert {"one.weight", "table", "flags"} <= set(written["sparse"])
    assert "norm.weight" not in written["sparse"]
    opened = prunus.load(path, Net().to(dtype))
    assert isinstance(opened, Net)
    assert opened.two.weight is opened.one.weight
    assert_same(opened, model)


@pytest.mark.parametrize("values", [None, "int8"])
def test_weights_are_written_where_the_model_has_them(values: Any, tmp_path: Path) -> None:
    model = masked()
    path = prunus.save(model, tmp_path / "m.safetensors", sparse=True, values=values)
    fresh = Net()
    before = {n: t.data_ptr() for n, t in fresh.state_dict().items()}
    loss = fresh.one(torch.ones(1, 96, requires_grad=True)).sum()
    opened = prunus.load(path, fresh)
    for name in manifest_of(path)["sparse"]:
        assert opened.state_dict()[name].data_ptr() == before[name], name
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # autograd knows that its weights are gone


def test_memory_of_others_is_not_written_over(tmp_path: Path) -> None:
    """Aliases, parts of a larger tensor, arrays: the model leaves them as they are."""
    model = nn.Sequential(*(nn.Linear(60, 60, bias=False) for _ in range(5)))
    for layer in model:
        layer.weight.data.masked_fill_(torch.rand(60, 60) < 0.9, 0)
    path = prunus.save(model, tmp_path / "m.safetensors", sparse=True)
    fresh = nn.Sequential(*(nn.Linear(60, 60, bias=False) for _ in range(5)))
    fresh[1].weight.data = fresh[0].weight.data
    large, array = torch.ones(2, 60, 60), np.ones((60, 60), np.float32)
    array.flags.writeable = True
    fresh[2].weight.data, fresh[3].weight.data = large[1], torch.from_numpy(array)
    fresh[4].weight.data = torch.ones(60, 60).t()
    assert_same(prunus.load(path, fresh), model.eval())
    assert (large == 1).all()
    assert (array == 1).all()


def test_a_file_without_the_keyword_is_as_it_always_was(tmp_path: Path) -> None:
    model = nn.Linear(100, 100)
    model.weight.data.zero_()
    path = prunus.save(model, tmp_path / "m.safetensors")
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {
            "prunus": '{"format": "prunus compact 1", "class": "Linear", "attributes": [], '
            '"graphs": {}, "dropped": [], "tied": {}}'
        }
        assert sorted(file.keys()) == ["bias", "weight"]


def test_where_nothing_gets_smaller_the_file_is_the_dense_one(tmp_path: Path) -> None:
    model = masked(1.0)
    del model.table, model.flags
    for values in (None, "float16"):
        dense = prunus.save(model, tmp_path / "dense").read_bytes()
        if values is None:
            assert prunus.save(model, tmp_path / "packed", sparse=True).read_bytes() == dense
        else:
            packed = prunus.save(model, tmp_path / "packed", sparse=True, values="float16")
            assert len(packed.read_bytes()) < 0.6 * len(dense)


@pytest.mark.parametrize("size", [1, 5, 9, 12, 16, 20, 40])
@pytest.mark.parametrize("density", [0.0, 0.5, 0.9, 0.96, 1.0])
@pytest.mark.parametrize("values", [None, "int8"])
def test_no_file_is_larger_than_the_dense_one(
    size: int, density: float, values: Any, tmp_path: Path
) -> None:
    model = nn.Sequential(*(nn.Linear(size, size) for _ in range(4)))
    for parameter in model.parameters():
        parameter.data *= torch.rand(parameter.shape) < density
    dense = prunus.save(model, tmp_path / "dense").stat().st_size
    assert prunus.save(model, tmp_path / "m", sparse=True, values=values).stat().st_size <= dense


def test_at_sparsity_nine_tenths_a_file_has_13_5_percent_of_the_bytes(tmp_path: Path) -> None:
    model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(3)))
    for layer in model:
        kept = torch.zeros(512 * 512, dtype=torch.bool)
        kept[torch.randperm(512 * 512)[: 512 * 512 // 10]] = True
        layer.weight.data.masked_fill_(~kept.view(512, 512), 0)
    dense = prunus.save(model, tmp_path / "dense").stat().st_size
    path = prunus.save(model, tmp_path / "packed", sparse=True)
    assert path.stat().st_size <= 0.135 * dense
    assert_same(prunus.load(path, nn.Sequential(*(nn.Linear(512, 512) for _ in range(3)))), model)


def test_equal_models_are_equal_files(tmp_path: Path) -> None:
    model = masked()
    one = prunus.save(model, tmp_path / "one", sparse=True, values="int8").read_bytes()
    assert prunus.save(model, tmp_path / "two", sparse=True, values="int8").read_bytes() == one


@pytest.mark.parametrize("whole", [False, True])
def test_a_compact_model_with_graphs_is_packed_as_well(whole: bool, tmp_path: Path) -> None:
    class Own(nn.MultiheadAttention):
        """Whose code may be its own, so that only a graph of it can be narrower."""

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = Own(32, 4, batch_first=True)
            self.one, self.two = nn.Linear(32, 96), nn.Linear(96, 32)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attention(x, x, x, need_weights=False)[0]
            hidden = self.one(x).relu()
            return self.two(hidden.view(-1, 96) if whole else hidden)

    model, x = Fixed(), torch.randn(2, 5, 32)
    recipe = {"structure": "channel" if whole else "head", "target": 0.5}
    result = prunus.prune(model, recipe, example=x)
    small = prunus.compact(model, result.masks, x)
    for parameter in small.model.parameters():
        parameter.data.masked_fill_(torch.rand(parameter.shape) < 0.8, 0)
    path = prunus.save(small.model, tmp_path / "m", small.attributes, sparse=True)
    written = manifest_of(path)
    assert list(written["graphs"]) == ([""] if whole else ["attention"])
    assert any(name.startswith("attention.") for name in written["sparse"])
    opened = prunus.load(path, None if whole else Fixed())
    assert_same(opened, small.model)
    assert torch.equal(opened(x), small.model.eval()(x))


# --- rounded values


@pytest.mark.parametrize(("values", "most"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_16_bit_values_are_the_nearest_and_zeros_stay(
    values: Any, most: float, tmp_path: Path
) -> None:
    model = masked()
    path = prunus.save(model, tmp_path / "m", sparse=True, values=values)
    opened = prunus.load(path, Net())
    for name, tensor in opened.state_dict().items():
        before = model.state_dict()[name]
        if name in ("conv.weight", "one.weight", "two.weight", "out.weight"):
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, before.to(getattr(torch, values)).float())
            assert bool(((tensor - before).abs() <= most * before.abs() + 1e-7).all())
            assert torch.equal(tensor == 0, before == 0)
        else:
            assert bits(tensor) == bits(before), name


def test_int8_is_within_half_a_step_of_its_output_and_zeros_stay(tmp_path: Path) -> None:
    model = masked()
    model.one.weight.data[5] *= 1000  # a scale of its own, or the other rows would vanish
    model.one.weight.data[6] = 0
    path = prunus.save(model, tmp_path / "m", sparse=True, values="int8")
    opened = prunus.load(path, Net())
    for name, tensor in opened.state_dict().items():
        before = model.state_dict()[name]
        if name in ("conv.weight", "one.weight", "two.weight", "out.weight"):
            step = before.flatten(1).abs().amax(1).div(127).view(-1, *[1] * (before.dim() - 1))
            assert tensor.dtype == torch.float32
            assert bool(((tensor - before).abs() <= step * 0.501).all())
            assert bool((tensor[before == 0] == 0).all())
        else:
            assert bits(tensor) == bits(before), name


@pytest.mark.parametrize(
    ("make", "scales"),
    [(lambda: nn.ConvTranspose2d(8, 6, 3), (1, 6, 1, 1)), (lambda: Conv1D(8, 30), (1, 30)),
     (lambda: nn.Conv2d(8, 6, 3), (6, 1, 1, 1)), (lambda: nn.LSTM(16, 8), (32, 1))],
    ids=["transposed", "gpt2", "conv", "lstm"],
)  # fmt: skip
def test_each_output_has_its_scale_whatever_the_layout(
    make: Callable[[], nn.Module], scales: tuple[int, ...], tmp_path: Path
) -> None:
    path = prunus.save(nn.Sequential(make()), tmp_path / "m", sparse=True, values="int8")
    found = {k: tuple(t.shape) for k, t in safetensors.torch.load_file(path).items() if "#s" in k}
    assert set(found.values()) == {scales}


def test_half_precision_models_open_in_half_precision(tmp_path: Path) -> None:
    model = masked().to(torch.bfloat16)
    path = prunus.save(model, tmp_path / "m", sparse=True, values="int8")
    opened = prunus.load(path, Net().to(torch.bfloat16))
    assert {p.dtype for p in opened.parameters()} == {torch.bfloat16}
    worst = (opened.one.weight - model.one.weight).abs().max()
    assert 0 < worst <= model.one.weight.abs().max() / 127


@pytest.mark.parametrize(
    ("value", "values", "message"),
    [(1e6, "float16", r"'one\.weight' reaches 1e\+06.*goes up to 65504"),
     (3.4e38, "bfloat16", "cannot be rounded"), (torch.inf, "int8", "needs finite values"),
     (torch.nan, "int8", "needs finite values")],
)  # fmt: skip
def test_what_cannot_be_rounded_is_refused_and_nothing_is_written(
    value: float, values: Any, message: str, tmp_path: Path
) -> None:
    model = masked()
    model.one.weight.data[3, 4] = value
    with pytest.raises(prunus.InputError, match=message):
        prunus.save(model, tmp_path / "m", sparse=True, values=values)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("value", [1e-45, 1e-42, 1e-38, 3.4e38])
def test_int8_of_the_smallest_and_the_largest_numbers_stays_finite(
    value: float, tmp_path: Path
) -> None:
    model = nn.Linear(40, 40)
    model.weight.data.zero_()[3, 4] = value
    path = prunus.save(model, tmp_path / "m", sparse=True, values="int8")
    found = prunus.load(path, nn.Linear(40, 40)).weight.detach()
    assert bool(found.isfinite().all())
    assert abs(float(found[3, 4]) - value) <= max(1e-43, value / 1000)


def test_int8_after_an_infinite_product_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(40, 40).double()
    model.weight.data.zero_()[3, 4] = 1e39  # float32 ends before
    with pytest.raises(prunus.InputError, match=r"reaches 1e\+39.*needs finite values"):
        prunus.save(model, tmp_path / "m", sparse=True, values="int8")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"values": "int8"}, "pass sparse=True"),
     ({"sparse": True, "values": "int4"}, "did you mean 'int8'")],
)  # fmt: skip
def test_settings_that_say_nothing_are_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(prunus.InputError, match=message):
        prunus.save(Net(), tmp_path / "m", **settings)


def test_an_attribute_that_is_no_number_is_not_written(tmp_path: Path) -> None:
    from prunus.compaction.slicing.attributes import Attribute

    with pytest.raises(
        prunus.InputError, match=r"'one\.mode' is 'x'; a file can hold only numbers"
    ):
        prunus.save(Net(), tmp_path / "m", [Attribute("one", "mode", "y", "x")])


# --- runs


def test_a_run_that_pruned_weights_leaves_a_packed_file_and_its_folder_opens(
    tmp_path: Path,
) -> None:
    task = tiny_task(width=512)
    result = prunus.prune(task, quick(target=0.9, schedule="linear"), folder=tmp_path / "run")
    path = tmp_path / "run" / "model.safetensors"
    assert set(manifest_of(path)["sparse"]) == {"0.weight", "3.weight"}
    dense = len(save_tensors(dict(result.model.state_dict())))
    assert path.stat().st_size < 0.4 * dense  # the biases stay
    assert_same(prunus.load(tmp_path / "run", task.model()), result.model.eval())
    assert_same(prunus.load(path, task.model()), result.model.eval())


def test_a_folder_without_a_model_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(prunus.InputError, match="not a run folder"):
        prunus.load(tmp_path, Net())
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(prunus.InputError, match=f"prunus resume {re.escape(str(tmp_path))}"):
        prunus.load(tmp_path, Net())


# --- the page


def reader() -> Callable[[Path], dict[str, np.ndarray[Any, Any]]]:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    imported = set(re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE))
    assert imported == {"json", "math", "numpy", "safetensors"}
    space: dict[str, Any] = {}
    exec(code, space)
    return space["read"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("values", [None, "bfloat16", "int8"])
@pytest.mark.parametrize("sparse", [False, True])
def test_the_reader_of_the_page_reads_what_prunus_reads(
    sparse: bool, values: Any, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = masked().to(dtype)
    path = prunus.save(model, tmp_path / "m", sparse=sparse, values=values if sparse else None)
    found = reader()(path)
    state = prunus.load(path, Net().to(dtype)).state_dict()
    assert set(found) == set(state)
    for name, tensor in state.items():
        mine = torch.from_numpy(found[name].copy())
        wide = torch.float32 if tensor.dtype == torch.bfloat16 else tensor.dtype
        assert mine.dtype == wide
        assert bits(mine.to(tensor.dtype)) == bits(tensor), name


def test_the_page_describes_every_key_and_both_formats(tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    path = prunus.save(masked(), tmp_path / "m", sparse=True)
    dense = prunus.save(masked(), tmp_path / "dense")
    for key in manifest_of(path):
        assert f"| `{key}` |" in page
    for file in (path, dense):
        assert f"`{manifest_of(file)['format']}`" in page
    size = struct.unpack("<Q", path.read_bytes()[:8])[0]
    assert size % 8 == 0  # what follows is aligned
