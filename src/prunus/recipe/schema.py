"""The recipe: plain values that say how to prune, which go together."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator

from prunus.errors import InputError, RefusedError
from prunus.recipe.code_files import files_of
from prunus.recipe.fields import RecipeFields
from prunus.recipe.load import change, explain, read, recipe_path, unknown_methods, yaml
from prunus.recipe.rules import conflicts


class Recipe(RecipeFields):
    """How to prune.

    Args:
        version: of the meaning of defaults: 2 adds ``repair: batch_norm`` where the model has batch
            norms and the run has calibration, unless another repair or ``none`` is written.
        name: what the run folder is called; no part of the fingerprint.
        task: a task of prunus, or ``my/file.py`` (``my/file.py:function``), relative to the
            recipe's file.
        seed: of everything random.
        dense: length of training in round 0; 0: the model is trained already.
        structure: what is removed: weight, ``2:4``, block, neuron, subset, layer; channel, head
            and (with ``compact: end``) layer are physically removable.
        scope: include and exclude patterns.
        criterion: what a weight is worth.
        unit_score: how the scores of a unit's weights become one (``mean``, ``sum``, ``max``,
            ``l2``), or ``{reduce, normalize}``: by what each layer's scores are divided.
        allocation: how much each group gives.
        schedule: how sparsity grows; by default ``geometric`` in rounds, ``early`` without.
        rounds: prune–retrain–judge cycles; without it pruning is gradual, inside retraining.
        retrain: length of retraining, after each cut or (gradual) in all.
        last_retrain: length of retraining after the last cut, where it is another than after the
            others: cut early, then recover for long.
        target: final sparsity, a bound such as ``max_macs: 0.5`` or ``max_latency_ms: 0.5`` (in
            the runtime that ``deploy`` names), or ``guard``. Default 0.9; n:m
            sets it itself. ``{sparsity: 0.8, layers: {"encoder.*": 0.5}}``: single layers have
            sparsities of their own, and the others what makes the whole exact.
        limits: the largest and the smallest sparsity that a parameter may get, by pattern:
            ``{"head": {most: 0.3}, "stem": {least: 0.1}}``.
        guard: judges rounds; none by default.
        repair: what brings accuracy back after a cut and before any training, on the calibration
            data: ``batch_norm``, ``bias_correction``, ``least_squares``, ``reconstruct`` or
            ``second_order``; none.
        regrow: what grows between optimizer steps while as much goes, ``rigl``, ``set``,
            ``top_kast``, or ``{name, every, end, fraction, decay}``; nothing by default.
        regularize: what pulls weights toward zero after each optimizer step, ``l1``, ``proximal``,
            ``group_lasso`` or ``greg``, or ``{name, during, …}``; nothing by default.
        teacher: ``dense``, a file of a model, or ``{model, temperature, weight, mix, objective}``:
            retraining learns from the answers of round 0's model, or of that file's, too; see
            :func:`prunus.distill`.
        restore: what happens to weights after a cut.
        learning_rate: plan of the rate while retraining; by default the loop's own.
        order: all groups at once, or from the bottom up.
        compact: whether the model becomes physically smaller: ``none``, at the ``end``, or
            ``every_round``, so that retraining gets faster as it goes.
        quantize: ``int8``: the result is quantized after pruning, calibrated on the calibration
            data; its metric is that of the artifact itself.
        deploy: a runtime, or ``{runtime, batch, threads}``: the artifact that a finished run ends
            with; ``auto`` is the fastest installed one that keeps the answers.
        keep: ``front``: the run's folder keeps, in ``front/``, the models of all rounds that no
            other is ahead of in size and metric; ``last``: that of the last accepted round alone.
        controls: what else is trained on the same budget once the run is over, to be set beside the
            pruned model: ``dense_longer``, ``same_shape_from_scratch``, ``random_choice``; none.
        sparse_training: whether retraining on a processor multiplies only the weights that are
            left, in the linear layers where that measures faster.
        limit: stop after this time (``20min``) or training (``30ep``, ``5000it``).
        snapshot: how often training is saved.

    >>> Recipe(structure="2:4", allocation="uniform").structure.settings
    {'n': 2, 'm': 4}
    """

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _told(error, "the recipe") from None

    # Else pydantic takes it for a way of its own to make one, and calls it from model_validate.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @model_validator(mode="before")
    @classmethod
    def _left_out(cls, values: Any) -> Any:
        """``repair: none`` asks version 2 to add nothing, as version 1 does."""
        if isinstance(values, dict) and (values.get("version"), values.get("repair")) == (
            2,
            "none",
        ):
            return {**{k: v for k, v in values.items() if k != "repair"}, "version": 1}
        return values

    @model_validator(mode="after")
    def _goes_together(self) -> Recipe:
        problems = conflicts(self)
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @classmethod
    def load(
        cls, source: str | Path | Mapping[str, Any] | Recipe, changes: Sequence[str] = ()
    ) -> Recipe:
        """A recipe by name, file, mapping or value, with ``key=value`` changes.

        Raises:
            InputError: listing everything that is wrong with it; a :class:`RefusedError` where
                every value is right and some cannot go together.

        >>> Recipe.load("one_shot", ["target=0.5", "criterion.name=fisher"]).criterion.name
        'fisher'
        >>> Recipe.load("channels", ["target.max_params=0.4"]).target.bound
        ('params', 0.4)
        """
        if isinstance(source, Recipe) and not changes:
            return source
        where = f"recipe '{source}'" if isinstance(source, (str, Path)) else "the recipe"
        values = source.to_dict() if isinstance(source, Recipe) else read(source)
        if not isinstance(changes, (list, tuple)) or not all(isinstance(c, str) for c in changes):
            raise InputError(f"changes is {changes!r:.80}: give a list of texts like target=0.9")
        changed = dict(values)
        for text in changes:
            change(changed, text)
        path = recipe_path(source) if isinstance(source, (str, Path)) else None
        files = files_of(values, changed, path)
        if isinstance(source, Recipe):
            files |= source._files
        try:
            recipe = cls.model_validate(changed, context={"files": files})
        except ValidationError as error:
            raise _told(error, where) from None
        except RecursionError:
            raise InputError(f"{where}: nested too deeply") from None
        problems = unknown_methods(recipe)
        if problems:
            raise InputError(f"{where}:\n" + "\n".join(problems))
        return recipe

    def replaced(self, values: Mapping[str, Any]) -> Recipe:
        """A recipe of other values, whose files lie where this one's do.

        Raises:
            InputError: if they cannot go together.
        """
        try:
            return Recipe.model_validate(values, context={"files": self._files})
        except ValidationError as error:
            raise _told(error, "the recipe") from None

    def written_out(self, *, batch_norms: bool, calibrated: bool) -> Recipe:
        """A recipe of version 1 that says what version 2 leaves to the model and the data, so that
        a run's folder says all that was done.

        Version 2 adds, where nothing is written, what was worth its cost (docs/methods.md):
        ``repair: batch_norm``, unless something in the recipe speaks against it.

        Args:
            batch_norms: whether the model has some that keep running statistics.
            calibrated: whether there are calibration batches, and a loss that knows how to call
                the model on them.

        >>> Recipe(version=2, rounds=3).written_out(batch_norms=True, calibrated=True).to_dict()
        {'version': 1, 'rounds': 3, 'repair': 'batch_norm'}
        >>> Recipe(version=2, rounds=3).written_out(batch_norms=True, calibrated=False).to_dict()
        {'version': 1, 'rounds': 3}
        """
        if self.version == 1:
            return self
        plain = {**self.to_dict(), "version": 1}
        if batch_norms and calibrated and self.in_rounds and self.repair is None:
            with contextlib.suppress(InputError):  # it does not go with what is written
                return self.replaced({**plain, "repair": "batch_norm"})
        return self.replaced(plain)

    def digest(self) -> str:
        """SHA-256 of the values that differ from the defaults, without the name."""
        plain = {k: v for k, v in self.to_dict().items() if k != "name"}
        plain |= {} if self.guard is None else {"guard": self.guard.model_dump()}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

    def to_yaml(self) -> str:
        """The recipe as a file."""
        out = io.StringIO()
        yaml().dump(self.to_dict(), out)
        return out.getvalue()


def _told(error: ValidationError, where: str) -> InputError:
    alone = any(item["loc"] for item in error.errors())  # else values that do not match
    kind = InputError if alone else RefusedError
    return kind(f"{where}:\n" + "\n".join(explain(error, Recipe)))
