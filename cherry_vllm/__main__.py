"""``python -m cherry_vllm`` is the console script ``cherry-vllm``."""

import sys

from cherry_vllm.cli import main

sys.exit(main())
