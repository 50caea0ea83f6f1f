"""What a compact model keeps of the one that it came from."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import prunus
from helpers import transformers


class Tied(nn.Module):
    """An embedding whose matrix is the output layer's too, and a frozen layer between."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.frozen, self.back = nn.Linear(6, 9), nn.Linear(9, 6)
        self.out = nn.Linear(6, 11, bias=False)
        self.out.weight = self.words.weight
        self.frozen.weight.requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.back(torch.relu(self.frozen(self.words(ids)))))


IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


def half(model: nn.Module, example: object) -> prunus.Compact:
    result = prunus.prune(model, {"structure": "channel", "target": 0.5}, example=example)
    return prunus.compact(model, result.masks, example)


def test_tied_weights_stay_tied_frozen_ones_frozen_and_the_mode_as_it_was() -> None:
    torch.manual_seed(0)
    model = Tied().train()
    model.back.eval()
    small = half(model, IDS).model
    assert isinstance(small, Tied)
    assert small.out.weight is small.words.weight
    assert small.words.weight.shape[0] == 11
    assert small.words.weight.shape[1] < 6
    assert not small.frozen.weight.requires_grad
    assert small.frozen.bias.requires_grad
    assert (small.training, small.back.training) == (True, False)
    loss = small(IDS).square().mean()
    loss.backward()
    assert small.frozen.weight.grad is None
    assert small.back.weight.grad is not None


def test_a_compact_model_with_zeros_left_is_saved_sparse(tmp_path: Path) -> None:
    def net() -> nn.Sequential:
        return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))

    torch.manual_seed(0)
    small = half(net(), torch.randn(2, 64))
    with torch.no_grad():
        for p in small.model.parameters():
            p[torch.rand_like(p) < 0.9] = 0
    dense = small.save(tmp_path / "dense.safetensors").stat().st_size
    path = small.save(tmp_path / "sparse.safetensors", sparse=True)
    rounded = small.save(tmp_path / "int8.safetensors", sparse=True, values="int8").stat().st_size
    assert rounded < path.stat().st_size < dense / 4
    opened = prunus.load(path, net()).state_dict()
    assert all(torch.equal(opened[k], v) for k, v in small.model.state_dict().items())


def test_a_tied_file_holds_the_matrix_once_and_opens_tied(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = half(Tied(), IDS)
    path = small.save(tmp_path / "tied.safetensors")
    assert sorted(safetensors.torch.load_file(path)) == [
        "back.bias", "back.weight", "frozen.bias", "frozen.weight", "words.weight",
    ]  # fmt: skip
    opened = prunus.load(path, Tied())
    assert isinstance(opened, Tied)
    assert opened.out.weight is opened.words.weight
    assert torch.equal(opened(IDS), small.model.eval()(IDS))


class Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 2)
        nn.utils.weight_norm(self.lstm, "weight_hh_l0")

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0])


def _normed(kind: str) -> tuple[nn.Module, Tensor]:
    norm = nn.utils.weight_norm
    if kind == "linear":
        layers = [norm(nn.Linear(4, 8)), nn.ReLU(), norm(nn.Linear(8, 6)), nn.Linear(6, 2)]
        return nn.Sequential(*layers), torch.randn(2, 4)
    if kind == "conv":
        layers = [norm(nn.Conv1d(4, 8, 3)), norm(nn.Conv1d(8, 8, 3, groups=8)), nn.ReLU(),
                  norm(nn.ConvTranspose1d(8, 6, 2)), nn.Conv1d(6, 2, 1)]  # fmt: skip
        return nn.Sequential(*layers), torch.randn(2, 4, 9)
    if kind == "spectral":
        layers = [nn.utils.spectral_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 2)]
        return nn.Sequential(*layers), torch.randn(2, 4)
    return Reads(), torch.randn(2, 3, 4)


@pytest.mark.parametrize("kind", ["linear", "conv", "lstm", "spectral"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_that_old_hooks_compute_leave_no_stale_sizes(kind: str) -> None:
    torch.manual_seed(0)
    model, x = _normed(kind)
    small = half(model, x)
    assert (small.route, small.error < 1e-12) == ("sliced", True)
    for name, module in small.model.named_modules():
        dense = model.get_submodule(name)
        if isinstance(module, nn.LSTM):
            assert module.hidden_size == module.weight_hh_l0_v.shape[1] < 8
            assert module.weight_hh_l0.shape == module.weight_hh_l0_v.shape
        elif isinstance(module, (nn.Linear, nn.Conv1d, nn.ConvTranspose1d)):
            outer = int(isinstance(module, nn.ConvTranspose1d))
            size = module.out_channels if isinstance(dense, nn.modules.conv._ConvNd) else (
                module.out_features)  # fmt: skip
            assert size == module.bias.shape[0]
            if kind != "spectral":  # its hook changes buffers: the next pass runs it
                assert module.weight.shape[outer] == size
    small.model(x).sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "prunus compact 99"}, "has the format"),
        ({"attributes": [["frozen", "__class__", 3]]}, "no attribute"),
        ({"attributes": [["frozen", "forward", 3]]}, "no attribute"),
        ({"attributes": [["nowhere", "in_features", 3]]}, "no module"),
        ({"attributes": "x"}, "damaged"),
        ({"graphs": {"frozen": {"document": {}, "attributes": {}}}}, "graph file"),
        ({"dropped": ["nowhere"]}, "does not hold|no module"),
    ],
)
def test_a_hostile_manifest_is_refused_and_changes_nothing(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    small = half(Tied(), IDS)
    path = small.save(tmp_path / "file.safetensors")
    with safetensors.safe_open(path, "pt") as file:
        manifest = json.loads(file.metadata()["prunus"])
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    bad = {"prunus": json.dumps({**manifest, **change})}
    path.write_bytes(safetensors.torch.save(tensors, bad))
    model = Tied()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(prunus.InputError, match=message):
        prunus.load(path, model)
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in before.items()
    }
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_files_of_others_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"x": torch.ones(1)}, other)
    with pytest.raises(prunus.InputError, match="did not write it"):
        prunus.load(other, Tied())
    torch.manual_seed(0)
    path = half(Tied(), IDS).save(tmp_path / "mine.safetensors")
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(prunus.InputError, match="cannot be read"):
        prunus.load(path, Tied())
    with pytest.raises(prunus.InputError, match="cannot be read"):
        prunus.load(tmp_path / "missing.safetensors", Tied())


def test_a_transformers_model_is_saved_and_opened_by_transformers_itself(tmp_path: Path) -> None:
    hf = transformers()
    torch.manual_seed(0)
    config = hf.BertConfig(
        vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4,
    )  # fmt: skip
    model = hf.BertModel(config)
    ids = {"input_ids": torch.tensor([[5, 7, 9], [11, 3, 2]])}
    recipe = {"structure": {"name": "channel", "heads": "stay"}, "target": 0.3,
              "allocation": "uniform", "compact": "end"}  # fmt: skip
    small = prunus.prune(model, recipe, example=ids).model
    assert small.config.intermediate_size < 48
    small.save_pretrained(tmp_path / "small")
    opened = hf.BertModel.from_pretrained(tmp_path / "small").eval()
    assert torch.equal(opened(**ids)[0], small.eval()(**ids)[0])
