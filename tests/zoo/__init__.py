"""Models with known answers: what can go from each of them, derived from its configuration."""

from __future__ import annotations

from zoo import (
    hf_decoders,
    hf_detect,
    hf_encoders,
    hf_more,
    hf_seq2seq,
    hf_vision_attention,
    hf_vision_conv,
    own_attention,
    own_calls,
    own_groups,
    own_networks,
    own_operators,
    own_plain,
    own_pyramids,
    own_recurrent,
    own_reparametrized,
    own_residual,
    own_sequences,
)
from zoo.entry import Entry

__all__ = ["CORE", "ENTRIES", "FAMILIES", "Entry", "by_name"]

_MODULES = (
    own_plain,
    own_residual,
    own_groups,
    own_pyramids,
    own_reparametrized,
    own_recurrent,
    own_attention,
    own_calls,
    own_operators,
    own_networks,
    own_sequences,
    hf_encoders,
    hf_decoders,
    hf_seq2seq,
    hf_vision_conv,
    hf_vision_attention,
    hf_detect,
    hf_more,
)
FAMILIES: dict[str, list[Entry]] = {
    str(m.__doc__).split(".\n")[0].strip("."): m.ENTRIES for m in _MODULES
}
ENTRIES: list[Entry] = [entry for entries in FAMILIES.values() for entry in entries]
CORE: list[Entry] = [entry for entry in ENTRIES if entry.core]

_BY_NAME = {entry.name: entry for entry in ENTRIES}
assert len(_BY_NAME) == len(ENTRIES), "two entries of one name"


def by_name(name: str) -> Entry:
    """The entry of this name; the error lists all names."""
    if name not in _BY_NAME:
        raise KeyError(f"{name!r} is not in the zoo, which has {', '.join(sorted(_BY_NAME))}")
    return _BY_NAME[name]
