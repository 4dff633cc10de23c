"""A run as one page of HTML that needs nothing else: no script, no file beside it, no network."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning_polystep.report.curves import bars, curve, groups
from lightning_polystep.report.run import Run, Series

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #ffffff; --card: #f5f5f4; --pale: #8a8a8a; --warn: #a33c00;
  --c0: #0072b2; --c1: #c24f00; --c2: #00805c; --c3: #a8527f; --c4: #2a86bd; --c5: #a87000; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e6; --paper: #161616; --card: #222222; --pale: #9a9a9a;
  --warn: #ffab78; --c0: #5db5ea; --c1: #ff9d5c; --c2: #3fcf9f; --c3: #e79cc4; --c4: #8fd0f7; --c5: #f2bb4b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.cards { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1rem 0; padding: 0; list-style: none; }
.cards li { background: var(--card); border-radius: .5rem; padding: .5rem .9rem; }
.cards b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem; }
figure { margin: 0; background: var(--card); border-radius: .5rem; padding: .5rem; }
figure svg { display: block; width: 100%; height: auto; }
figure img { display: block; max-width: 100%; height: auto; background: #ffffff; border-radius: .25rem; }
figcaption { font-size: .85rem; padding: .25rem; } .wide { grid-column: 1 / -1; } section > figure { max-width: 40rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0;
  border-bottom: 1px solid color-mix(in srgb, var(--pale) 40%, transparent); }
td.number { text-align: right; } .warn { color: var(--warn); font-weight: 600; }
code, pre { font-family: ui-monospace, monospace; font-size: .85rem; }
pre { background: var(--card); border-radius: .5rem; padding: .75rem; overflow-x: auto; }
"""

# Of layers, figures that are bad news above a share, with what to do about them.
_HEALTH = {
    "dead_neurons": (0.5, "most neurons never fire: InitialiseByData, or a lower threshold"),
    "saturated_neurons": (0.5, "most neurons always fire: InitialiseByData, or a higher threshold"),
    "clip_fraction": (0.05, "activations are beyond the largest code: Calibrate(follow=True)"),
    "weight_clip_fraction": (0.05, "weights are beyond the largest code: Calibrate(follow=True), or a lower lr"),
    "dead_experts": (0.0, "experts without a sample: InitialiseByData, or fewer experts"),
}
_WHAT = {
    "candidates": "candidates scored",
    "samples_per_candidate": "samples per candidate",
    "steps": "steps",
    "epochs": "epochs",
}


def page(run: Run) -> str:
    """Return a run as HTML.

    Args:
        run: What it has left.

    Raises:
        ModuleNotFoundError: Without matplotlib: ``pip install "lightning-polystep[pictures]"``.
    """
    name = f"{run.folder.resolve().parent.name} / {run.folder.resolve().name}"
    sections = [
        ("Curves", _curves(run.series)),
        ("Plan: how candidates were scored", _plan(run.results)),
        ("Where the time went", _seconds(run.results)),
        ("Health of the layers", _health(run.series)),
        ("Pictures", _pictures(run.pictures)),
        ("Environment", _environment(run.results)),
        ("To repeat it", _repeat(run)),
    ]
    body = "\n".join(f"<section><h2>{html.escape(title)}</h2>\n{content}</section>" for title, content in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(name)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(name)}</h1>\n{_head(run.results)}\n{body}\n</body>\n</html>\n"
    )


def _head(results: Mapping[str, Any]) -> str:
    if not results:
        return (
            '<p class="warn">There is no results.json: the run did not end, or was not started by the command line.</p>'
        )
    metrics = dict(results.get("test_metrics") or results.get("fit_metrics") or {})
    shown = [(name, _number(value)) for name, value in metrics.items() if "test_metrics" in results or "/" in name]
    shown = [(name, value) for name, value in shown if not name.startswith("polystep/")]
    shown += [(label, _number(results[key])) for key, label in _WHAT.items() if results.get(key) is not None]
    if "wall_seconds" in results:
        shown.append(("seconds of the fit", f"{results['wall_seconds']:.1f}"))
    if "peak_memory_mib" in results:
        shown.append(("MiB of memory at most", f"{results['peak_memory_mib']:,.0f}"))
    cards = "".join(f"<li><b>{value}</b>{html.escape(name)}</li>" for name, value in shown)
    tested = f"<p>Tested: {html.escape(str(results['tested']))}.</p>" if "tested" in results else ""
    return f'<ul class="cards">{cards}</ul>{tested}'


def _curves(series: Mapping[str, Series]) -> str:
    made = groups(series)
    if not made:
        return "<p>Nothing was logged: give the Trainer a CSVLogger or a TensorBoardLogger.</p>"
    still = [
        title for title, lines in made.items() if not any(value for each in lines.values() for value in each.values)
    ]
    told = f"<p>Always 0: {html.escape(', '.join(still))}.</p>" if still else ""
    drawn = {title: lines for title, lines in made.items() if title not in still}
    return _grid(_figure(curve(title, lines), f"{title} over the steps") for title, lines in drawn.items()) + told


def _plan(results: Mapping[str, Any]) -> str:
    plan: Sequence[Mapping[str, Any]] = results.get("plan") or []
    if not plan:
        return "<p>No plan was written: the run was not one of PolyStep, or did not end.</p>"
    names = ["block", "rows", "rank", "tier", "note"]
    return _table(
        ["block", "rows", "directions", "scored by", "note"],
        [[entry.get(name, "") for name in names] for entry in plan],
    )


def _seconds(results: Mapping[str, Any]) -> str:
    seconds = dict(results.get("seconds_by_verb") or {})
    if not seconds:
        return "<p>No times were written.</p>"
    rest = float(results.get("wall_seconds", 0.0)) - sum(seconds.values())
    if rest > 0:
        seconds["validation, data, the rest"] = rest
    return _figure(bars("seconds of the fit", seconds), "Seconds of the fit by verb")


def _health(series: Mapping[str, Series]) -> str:
    layers: dict[str, dict[str, float]] = {}
    for name, each in series.items():
        stage, _, rest = name.partition("/")
        figure, _, layer = rest.partition("/")
        if layer and stage != "polystep" and each.values:
            layers.setdefault(layer, {})[figure] = each.values[-1]
    if not layers:
        return (
            "<p>Nothing was logged of single layers: <code>lightning_polystep.callbacks.LayerMetrics</code> does, at "
            "every validation.</p>"
        )
    columns = sorted({figure for figures in layers.values() for figure in figures})
    rows: list[list[Any]] = []
    warnings: dict[str, list[str]] = {}
    for layer, figures in layers.items():
        cells: list[Any] = [layer]
        for figure in columns:
            most, sentence = _HEALTH.get(figure, (float("inf"), ""))
            bad = figures.get(figure, 0.0) > most
            cells.append((_number(figures[figure]) if figure in figures else "", bad))
            if bad:
                warnings.setdefault(sentence, []).append(layer)
        rows.append(cells)
    told = "".join(
        f'<p class="warn">{html.escape(", ".join(names))}: {html.escape(sentence)}.</p>'
        for sentence, names in warnings.items()
    )
    return f"{told}<p>At the last look:</p>{_table(['layer', *(c.replace('_', ' ') for c in columns)], rows)}"


def _pictures(pictures: Mapping[str, bytes]) -> str:
    if not pictures:
        return (
            "<p>None were drawn: <code>lightning_polystep.callbacks.LayerPictures</code> and <code>StepPictures</code> "
            "do, during the run.</p>"
        )
    shown = []
    for name, image in pictures.items():
        data = base64.b64encode(image).decode()
        shown.append(_figure(f'<img alt="{html.escape(name)}" src="data:image/png;base64,{data}">', name, wide=True))
    return _grid(shown)


def _environment(results: Mapping[str, Any]) -> str:
    rows: list[list[Any]] = [
        [name, version or "not installed"] for name, version in (results.get("packages") or {}).items()
    ]
    rows += [
        [label, results[key]]
        for key, label in (("threads", "threads"), ("seed", "seed"))
        if results.get(key) is not None
    ]
    if "parameters_sha256" in results:
        rows.append(["parameters, SHA-256", results["parameters_sha256"]])
    return _table(["what", "which"], rows) if rows else "<p>Not written: the run did not end.</p>"


def _repeat(run: Run) -> str:
    if not run.config:
        return "<p>There is no config.yaml: run the script again that made this run.</p>"
    command = f"python -m lightning_polystep fit --config {run.folder / 'config.yaml'}"
    return (
        f"<pre>{html.escape(command)}</pre>\n<details><summary>config.yaml</summary>"
        f"<pre>{html.escape(run.config)}</pre></details>"
    )


def _grid(figures: Iterable[str]) -> str:
    return f'<div class="grid">{"".join(figures)}</div>'


def _figure(content: str, caption: str, *, wide: bool = False) -> str:
    label = html.escape(caption)
    content = content.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    below = f"<figcaption>{label}</figcaption>" if wide else ""
    return f"<figure{' class=wide' if wide else ''}>{content}{below}</figure>"


def _table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    lines = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def _cell(cell: Any) -> str:
    if isinstance(cell, tuple):
        text, bad = cell
        return f'<td class="number{" warn" if bad else ""}">{text}</td>'
    number = isinstance(cell, int | float)
    return f'<td class="number">{_number(cell)}</td>' if number else f"<td>{html.escape(str(cell))}</td>"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
