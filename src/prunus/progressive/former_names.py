"""Names that a pruner no longer shows, and what to use instead."""

from __future__ import annotations

_INTERNAL = ("asks", "hold", "see", "given", "shrinks", "dropped", "running", "ideas", "target",
             "start", "in_place", "collects_running")  # fmt: skip
ELSEWHERE = {
    name: where
    for where, names in {
        "it is 'achieved' now": ("reached",),
        "it is 'reason' now": ("why",),
        "a loop is joined by Pruner(…, optimizer) or join()": ("attach", "begin"),
        "finish() removes the hooks": ("detach",),
        "rounds[-1] has it, once a round was judged": ("densities", "l1", "counts_in"),
        "prunus.units(model, example) shows what can go": ("layers", "groups", "view", "space"),
        "prunus.prune(model, recipe) cuts at once": ("cut", "choose", "counts"),
        "state_dict() and load_state_dict() hold all of it": ("state", "load"),
        "load_state_dict() refuses the state of another recipe": ("refuse_other",),
        "it is the argument that you gave": (
            "optimizer",
            "evaluate",
            "calibration",
            "loss",
            "example",
        ),
        "it is internal now": _INTERNAL,
    }.items()
    for name in names
}
