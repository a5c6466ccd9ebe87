"""Instruction-Following Difficulty (IFD) scores and cherry data, at scale.

The method is "From Quantity to Quality" (arXiv 2308.12032). Data walks one way:

    sources -> prompts -> spans -> engines -> ifd -> selection
"""

__version__ = "0.1.0"
