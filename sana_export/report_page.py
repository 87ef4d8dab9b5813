"""The report as one page of HTML: no script, nothing from elsewhere, every text escaped."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from sana_export.html_page import bar, document, table

__all__ = ["page"]

WIDTH, HEIGHT, LEFT, BOTTOM = 720, 220, 60, 30  # of the chart, and of its margins


def page(report: dict[str, Any], pictures: Sequence[tuple[str, str, str]]) -> str:
    """The whole page."""
    title = f"INT8 of {report['model']}"
    body = "\n".join(
        [
            f"<h1>{escape(title)}</h1>",
            _summary(report),
            _pictures(report["gate"]["pictures"], pictures),
            _timesteps(report["gate"]),
            _products(report["products"]),
            _parts(report),
            _calibration(report["calibration"]),
        ]
    )
    return document(title, body)


def _summary(report: dict[str, Any]) -> str:
    gate = report["gate"]
    verdict = (
        '<p class="good">The quality gate is passed.</p>'
        if gate["passed"]
        else f'<p class="bad">The quality gate is not passed: {escape("; ".join(gate["complaints"]))}.</p>'
    )
    limits = gate["limits"]
    rows = [
        (
            "pictures, INT8 against float, median",
            f"{_shown(gate['median_psnr'])} dB",
            f"at least {limits['psnr']:g} dB",
        ),
        ("structural similarity, median", _shown(gate["median_ssim"]), f"at least {limits['ssim']:g}"),
        ("cosine of latents, median", _shown(gate["median_latent_cosine"]), f"at least {limits['latent_cosine']:g}"),
        ("velocity error, worst timestep", _worst(gate), f"at most {limits['velocity_error']:g}"),
        ("multiplications of the transformer's products in INT8", f"{report['int8_share']:.2%}", ""),
    ]
    return f"{verdict}{table(('', 'measured', 'required'), rows)}<p>{escape(report['speed']['verdict'])}.</p>"


def _worst(gate: dict[str, Any]) -> str:
    medians = [each["median"] for each in gate["velocity_errors"]]
    return "not finite" if None in medians else _shown(max(medians))


def _pictures(told: Sequence[dict[str, Any]], pictures: Sequence[tuple[str, str, str]]) -> str:
    figures = "".join(
        f"<figure>{_images(three)}"
        f"<figcaption>{escape(about['prompt'])} <span class=quiet>seed {about['seed']}, {_shown(about['psnr'])} dB"
        "</span></figcaption></figure>"
        for about, three in zip(told, pictures, strict=False)
    )
    return f"<h2>Float, INT8, and their difference, eight times as strong</h2>{figures}"


def _images(three: Iterable[str]) -> str:
    named = zip(("float", "INT8", "difference"), three, strict=True)
    return "".join(f'<img alt="{name}" src="data:image/png;base64,{data}">' for name, data in named)


def _timesteps(gate: dict[str, Any]) -> str:
    """A chart of the velocity error over the steps of the solver."""
    errors = gate["velocity_errors"]
    top = max([gate["limits"]["velocity_error"], *(each["worst"] or 0.0 for each in errors)]) * 1.1
    across = (WIDTH - LEFT - 10) / max(1, len(errors) - 1)

    def line(kind: str, colour: str) -> str:
        points = " ".join(
            f"{LEFT + i * across:.1f},{_height(each[kind] or top, top):.1f}" for i, each in enumerate(errors)
        )
        return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'

    limit = _height(gate["limits"]["velocity_error"], top)
    labels = "".join(
        f'<text x="{LEFT + i * across:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{each["timestep"]:.0f}</text>'
        for i, each in enumerate(errors)
        if i % max(1, len(errors) // 8) == 0
    )
    scale = "".join(
        f'<text x="{LEFT - 8}" y="{_height(value, top) + 4:.1f}" text-anchor="end">{value:.3f}</text>'
        for value in (0.0, top / 2, top / 1.1)
    )
    drawing = (
        f'<line x1="{LEFT}" x2="{WIDTH}" y1="{limit:.1f}" y2="{limit:.1f}" stroke="#a8201a" stroke-dasharray="4"/>'
        f"{line('worst', '#b9c6d6')}{line('median', '#3b6ea8')}{labels}{scale}"
    )
    return (
        "<h2>Relative error of the velocity by timestep</h2><p class=quiet>Median, worst prompt in grey, the limit "
        f'dashed; both models see the float model\'s latents.</p><svg viewBox="0 0 {WIDTH} {HEIGHT}">{drawing}</svg>'
    )


def _height(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - value / top * (HEIGHT - BOTTOM - 10)


def _products(products: Sequence[dict[str, Any]]) -> str:
    largest = max((each["effect"] or 0.0 for each in products), default=0.0) or 1.0
    rows = "".join(
        f'<tr class="{"int8" if each["int8"] else "float"}"><td>{escape(each["product"])}</td>'
        f"<td>{'INT8' if each['int8'] else 'float: ' + escape(each['why_float'])}</td>"
        f"<td>{_shown(each['rounding_error_plain'])} → {_shown(each['rounding_error'])}</td>"
        f"<td>{escape(each['smoothing'])}</td>"
        f"<td>{bar((each['effect'] or largest) / largest)}{_shown(each['effect'])}</td></tr>"
        for each in products
    )
    head = "".join(f"<th>{name}</th>" for name in ("product", "computed in", "rounding error", "smoothing", "effect"))
    return (
        "<h2>Every product</h2><p class=quiet>Rounding error of the product itself, plain and smoothed; effect of this "
        f"product alone on finished latents.</p><table><tr>{head}</tr>{rows}</table>"
    )


def _parts(report: dict[str, Any]) -> str:
    rows = [(part["part"], part["scheme"], part["verdict"], _told(part["kept_float"])) for part in report["parts"]]
    return f"<h2>Parts</h2>{table(('part', 'scheme', 'verdict', 'layers that stay float'), rows)}"


def _told(kept_float: dict[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in kept_float.items())


def _calibration(told: dict[str, Any]) -> str:
    size = " by ".join(map(str, told["size"]))
    about = (
        f"{len(told['prompts'])} prompts, {told['solver']} with {len(told['timesteps'])} steps, guidance "
        f"{told['guidance']:g}, {told['branches']} branches, {size} pixels; prompts {told['prompt_set_sha256'][:16]}."
    )
    items = "".join(f"<li>{escape(prompt)}</li>" for prompt in told["prompts"])
    found = "".join(f"<li>{escape(finding)}</li>" for finding in told["findings"])
    return (
        f"<h2>Calibration</h2><p>{escape(about)}</p>{f'<p>Left out or cut off:</p><ul>{found}</ul>' if found else ''}"
        f"<details><summary>Prompts</summary><ol>{items}</ol></details>"
    )


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
