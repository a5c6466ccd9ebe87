"""The facts and figures of a run as one HTML file that needs no network."""

import base64
import functools
import hashlib
import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cherry_vllm.figures.figure import Figure, dash_name
from cherry_vllm.figures.results import JobResult
from cherry_vllm.figures.theme import DARK, DARK_COLORS, LIGHT, LIGHT_COLORS
from cherry_vllm.reporting.extremes import Sample
from cherry_vllm.reporting.landscape import Cluster

FOLDER = Path(__file__).parent


class Missing(NamedTuple):
    """Something that a page could show, and the command that makes it."""

    what: str
    command: str


@dataclass(kw_only=True, slots=True)
class Page:
    """All that a page shows."""

    name: str
    fraction: float  # of the usable rows, at either end of the IFD scale
    headline: dict[str, str] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    clusters: list[Cluster] = field(default_factory=list)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    jobs: list[JobResult] = field(default_factory=list)
    check: dict[str, str] = field(default_factory=dict)  # of the engine, by label
    missing: list[Missing] = field(default_factory=list)
    origin: dict[str, str] = field(default_factory=dict)

    def draw(self, figure: Figure) -> None:
        self.figures[figure.name] = figure

    def lack(self, what: str, stage: str, *overrides: str) -> None:
        """Notes what is missing and the command that makes it."""
        self.missing.append(Missing(what, shlex.join(["cherry-vllm", stage, *overrides])))


def render(page: Page) -> str:
    """The page as HTML. Text from the data set stays text, and never becomes markup or script."""
    specs = {name: figure.spec("container") for name, figure in page.figures.items()}
    data = {"specs": specs, "light": LIGHT, "dark": DARK}
    scripts = [bundle(), (FOLDER / "page.js").read_text(encoding="utf-8")]
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        page=page,
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),  # noqa: S704
        data=Markup(_embed(data)),  # noqa: S704
        scripts=[Markup(script) for script in scripts],  # noqa: S704
        dash_name=dash_name,
        light=LIGHT_COLORS,
        dark=DARK_COLORS,
        hashes=[_hash(script) for script in scripts],
    )


def _embed(value: Any) -> str:
    """The value as JSON in which an HTML parser can find no tag."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@functools.cache
def bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script, as bundled with vl-convert."""
    script: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]
    if "</script" in script.lower():
        raise RuntimeError("the bundled library would end its own script element")
    return script


def _hash(script: str) -> str:
    """The hash by which the page's policy allows a script; no other script runs."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
