"""Growth as a picture: query time and memory over chunks, both axes logarithmic."""

from collections.abc import Sequence
from math import ceil, floor, log10

from tests.bench.knowledge_library import Size

_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 320, 240, 60, 40, 90


def svg(sizes: Sequence[Size]) -> str:
    """Two charts side by side."""
    chunks = [float(size.chunks) for size in sizes]
    queries = {"p95": [size.p95 for size in sizes], "p50": [size.p50 for size in sizes]}
    memory = {"": [size.resident_bytes_a_chunk * size.chunks / (1 << 20) for size in sizes]}
    total = 2 * _WIDTH + _LEFT + _GAP + 40
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {_HEIGHT + 90}" font-family="sans-serif"'
            ' font-size="12" fill="#333">',
            f'<rect width="{total}" height="{_HEIGHT + 90}" fill="#fff"/>',
            _chart(_LEFT, "query, ms", chunks, queries),
            _chart(_LEFT + _WIDTH + _GAP, "resident, MiB", chunks, memory),
            "</svg>\n",
        )
    )


def _chart(left: int, title: str, xs: Sequence[float], lines: dict[str, list[float]]) -> str:
    across = _scale(xs, left, left + _WIDTH)
    values = [value for line in lines.values() for value in line]
    up = _scale(values, _TOP + _HEIGHT, _TOP)
    parts = [f'<text x="{left}" y="{_TOP - 15}" font-weight="bold">{title}</text>']
    for power in range(floor(log10(min(values))), ceil(log10(max(values))) + 1):
        y = up(10.0**power)
        parts.append(f'<line x1="{left}" y1="{y:.0f}" x2="{left + _WIDTH}" y2="{y:.0f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end">{10.0**power:g}</text>')
    for x in xs:
        label = f"{x / 1000:g}k" if x < 1e6 else f"{x / 1e6:g}M"
        parts.append(f'<text x="{across(x):.0f}" y="{_TOP + _HEIGHT + 20}" text-anchor="middle">{label}</text>')
    for number, (name, line) in enumerate(lines.items()):
        colour = ("#c33", "#36c")[number]
        points = [(across(x), up(y)) for x, y in zip(xs, line, strict=True)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        parts.append(f'<text x="{points[-1][0] - 4:.0f}" y="{points[-1][1] - 8:.0f}" text-anchor="end">{name}</text>')
    parts.append(f'<text x="{left + _WIDTH / 2:.0f}" y="{_TOP + _HEIGHT + 40}" text-anchor="middle">chunks</text>')
    return "\n".join(parts)


class _Scale:
    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._low, self._high, self._start, self._end = low, max(high, low + 1), start, end

    def __call__(self, value: float) -> float:
        return self._start + (log10(value) - self._low) / (self._high - self._low) * (self._end - self._start)


def _scale(values: Sequence[float], start: float, end: float) -> _Scale:
    return _Scale(floor(log10(min(values))), ceil(log10(max(values))), start, end)
