"""The demo's model and data (`cherry-vllm fetch-demo`), for measurements that name no others."""

from pathlib import Path

from cherry_vllm.commands import demo
from cherry_vllm.config import compose

FOLDER = Path(compose().demo.cache_dir)
MODEL = FOLDER / demo.CHECKPOINT
DATA = FOLDER / demo.DATA
