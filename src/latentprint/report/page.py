"""From results.json and run.json to one HTML file that needs no network and holds nothing private.

The page has a Content-Security-Policy that allows only its own style and its own script, by hash. If some
text in the results were to slip through the escaping, the browser would still refuse to run it.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from latentprint.files import write
from latentprint.report.first import first_screen
from latentprint.report.palette import variables
from latentprint.report.public import RunFacts
from latentprint.report.sections import sections
from latentprint.results import Results
from latentprint.results.read import read_results


@cache
def environment() -> Environment:
    """Jinja with every value escaped and every missing name an error."""
    return Environment(
        loader=PackageLoader("latentprint.report", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def page(template: str, title: str, *, scripted: bool, **values: object) -> str:
    """Render one page with style, script and the policy that pins both."""
    pages = environment()
    style = variables() + _asset(pages, "style.css")
    script = _asset(pages, "script.js") if scripted else ""
    allowed = [f"style-src '{_sha256(style)}'", "img-src data:"]
    if script:
        allowed.append(f"script-src '{_sha256(script)}'")
    policy = "; ".join(["default-src 'none'", *allowed, "base-uri 'none'", "form-action 'none'"])
    return pages.get_template(template).render(
        title=title, style=Markup(style), script=Markup(script), policy=Markup(policy), **values
    )


def _asset(pages: Environment, name: str) -> str:
    assert pages.loader is not None
    return pages.loader.get_source(pages, name)[0].strip()


def _sha256(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def render(results: Results, run: RunFacts) -> str:
    """The report as one HTML string."""
    first = first_screen(results)
    title = f"Privacy audit: {first.word.lower()}"
    return page("report.html.j2", title, scripted=True, first=first, sections=sections(results, run))


def write_report(folder: Path | str) -> Path:
    """Read results.json and run.json of a run folder and write report.html beside them (to a temporary file,
    then renamed).

    Raises:
        InputError: one of the two files is missing, is not JSON, or does not have this schema.
    """
    folder = Path(folder)
    text = render(read_results(folder), RunFacts.read(folder))
    write(folder / "report.html", text.encode(), public=True)
    return folder / "report.html"
