"""A model over all rows: what scoring, embedding and measuring perplexity have in common."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm.checkpoint import checkpoint_fingerprint
from cherry_vllm.engines import MEMORY_SETTINGS
from cherry_vllm.schema import SCHEMA_VERSION
from cherry_vllm.spans import SpanBuilder, open_span_builder
from cherry_vllm.store import Shards, transform_shards
from cherry_vllm.versions import installed_versions

log = logging.getLogger(__name__)

Transform = Callable[[pl.DataFrame, Callable[[int], None]], pl.DataFrame]
"""A shard of rows, and whom to tell of progress, to a shard of results."""


class Inference:
    """Row shards through one model, to shards named by all that decides their contents."""

    def __init__(
        self,
        parent: Path,
        rows: Shards,
        checkpoint: Path,
        *,
        prompt: dict[str, Any],
        max_length: int,
        engine: dict[str, Any],
        trust_remote_code: bool,
        **parameters: Any,
    ) -> None:
        """``prompt`` holds the arguments of :func:`prompts.build_template`, ``engine`` those of
        :func:`engines.build_engine` or :func:`engines.build_embedder`; ``parameters`` are what
        else decides the results.
        """
        self._rows, self._checkpoint, self._prompt = rows, checkpoint, prompt
        self._limits: dict[str, Any] = {
            "max_length": max_length,
            "trust_remote_code": trust_remote_code,
        }
        self._engine = engine
        settings = {
            "schema_version": SCHEMA_VERSION,
            "rows": rows.fingerprint,
            "model": checkpoint_fingerprint(checkpoint),
            "prompt": prompt,
            "max_length": max_length,
            "engine": {key: engine[key] for key in engine if key not in MEMORY_SETTINGS},
            **parameters,
        }
        self.target = Shards(parent, settings)

    def run(
        self,
        label: str,
        open_model: Callable[..., Any],
        transform_with: Callable[[SpanBuilder, Any], Transform],
        *,
        done: str,
        units_per_row: int = 1,
    ) -> Shards:
        """Makes the shards that are missing, and loads the model only if some are.

        Raises:
            UserError: the model cannot be used, or cannot take ``max_length`` tokens.
        """
        target = self.target
        if target.is_complete():
            log.info("%s: %s before, nothing to do", target.folder, done)
            return target
        builder = open_span_builder(self._checkpoint, prompt=self._prompt, **self._limits)
        missing = [index for index in range(self._rows.num_shards) if not target.is_done(index)]
        if missing:
            log.info("loading %s", self._checkpoint)
            model = open_model(model_path=self._checkpoint, **self._engine, **self._limits)
            transform = transform_with(builder, model)
            transform_shards(
                label, self._rows, target, missing, transform, units_per_row=units_per_row
            )
        target.close(
            self._rows.num_shards, model=str(self._checkpoint), versions=installed_versions()
        )
        return target
