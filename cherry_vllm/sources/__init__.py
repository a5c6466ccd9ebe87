"""Files to rows: instruction data in any common format, as frames of :data:`schema.ROWS`.

A record that cannot be read is a row with ``drop_reason`` "malformed"; a file that cannot be read
is a :class:`UserError`. Memory holds one batch of records, whatever the size of the input.
"""

from cherry_vllm.sources.fields import Columns
from cherry_vllm.sources.formats import Layout
from cherry_vllm.sources.paths import find_files
from cherry_vllm.sources.rows import read_rows

__all__ = ["Columns", "Layout", "find_files", "read_rows"]
