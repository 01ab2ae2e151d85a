"""The result as a chart: ratios to the base on a logarithmic axis, left of the line is faster."""

import math
from xml.sax.saxutils import escape

from .report import base_of, ratio

WIDTH, LABEL, RIGHT = 860, 250, 60
BAR, GAP, TOP, BOTTOM = 9, 9, 84, 44
TICKS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
# Ours stands out, the others are told apart by lightness; each has a colour for light and for dark pages.
OURS = (("#0969da", "#58a6ff"), ("#bf3989", "#f778ba"), ("#1a7f37", "#3fb950"))
OTHERS = (("#57606a", "#c9d1d9"), ("#8c959f", "#8b949e"), ("#afb8c1", "#6e7681"), ("#d0d7de", "#484f58"))


def colours(names):
    """A class for each backend, and its two colours."""
    ours, others = list(OURS), list(OTHERS)
    chosen = {}
    for name in names:
        known = name in ("native", "overlayfs", "fuse-overlayfs-1", "fuse-overlayfs-2", "unionfs-fuse")
        pool = others if known or not ours else ours
        chosen[name] = pool.pop(0) if pool else OTHERS[-1]
    return chosen


def draw(result):
    """The workloads marked for the chart as SVG text."""
    base = base_of(result)
    names = [name for name in result["backends"] if name not in (base, "native")]
    names.sort(key=lambda name: name in ("fuse-overlayfs-1", "fuse-overlayfs-2", "unionfs-fuse"))
    rows = [(w["workload"], {n: ratio(w, n, base) for n in names}) for w in result["workloads"] if w["chart"]]
    rows = [(label, found) for label, found in rows if any(found.values())]
    values = [v for _, found in rows for v in found.values() if v]
    low = max((t for t in TICKS if t <= min(values, default=0.5)), default=TICKS[0])
    high = min((t for t in TICKS if t >= max(values, default=2)), default=TICKS[-1])
    low, high = min(low, 0.5), max(high, 2)
    step = len(names) * BAR + GAP
    height = TOP + step * len(rows) + BOTTOM
    inner = WIDTH - LABEL - RIGHT

    def x(value):
        position = math.log(min(max(value, low), high) / low) / math.log(high / low)
        return LABEL + inner * position

    chosen = colours(names)
    light = "".join(f".b{i}{{fill:{chosen[n][0]}}}" for i, n in enumerate(names))
    dark = "".join(f".b{i}{{fill:{chosen[n][1]}}}" for i, n in enumerate(names))
    title = f"Time as a multiple of {base}'s"
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">',
        "<style>text{font:12px system-ui,sans-serif;fill:#1f2328}.h{font-size:15px;font-weight:600}"
        ".m{fill:#656d76;font-size:11px}.g{stroke:#d0d7de}.one{stroke:#1f2328;stroke-width:1.5}"
        f"{light}@media(prefers-color-scheme:dark){{text{{fill:#e6edf3}}.m{{fill:#9198a1}}.g{{stroke:#3d444d}}"
        f".one{{stroke:#e6edf3}}{dark}}}</style>",
        f'<text class="h" x="12" y="24">{escape(title)}: left of the line is faster</text>',
    ]
    at = 12
    for i, name in enumerate(names):
        out.append(f'<rect class="b{i}" x="{at}" y="38" width="11" height="11" rx="2"/>')
        out.append(f'<text x="{at + 16}" y="48">{escape(name)}</text>')
        at += 34 + 7 * len(name)
    bottom = TOP + step * len(rows)
    for tick in TICKS:
        if low <= tick <= high:
            kind = "one" if tick == 1 else "g"
            out.append(f'<line class="{kind}" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP - 8}" y2="{bottom}"/>')
            out.append(f'<text class="m" text-anchor="middle" x="{x(tick):.1f}" y="{TOP - 13}">{tick:g}</text>')
    for row, (label, found) in enumerate(rows):
        top = TOP + row * step
        middle = top + len(names) * BAR / 2 + 4
        out.append(f'<text text-anchor="end" x="{LABEL - 12}" y="{middle:.1f}">{escape(label)}</text>')
        for i, name in enumerate(names):
            out += bar(i, found[name], top + i * BAR, x)
    out.append(f'<text class="m" x="12" y="{height - 16}">{escape(footer(result))}</text>')
    return "\n".join([*out, "</svg>\n"])


def bar(i, value, top, x):
    """One bar from the line at 1, and its value at the end."""
    if value is None:
        return [f'<text class="m" x="{x(1) + 4:.1f}" y="{top + 8}" style="font-size:9px">no result</text>']
    left, right = sorted((x(1), x(value)))
    wide = max(right - left, 1)
    anchor, end = ("start", right + 3) if value >= 1 else ("end", left - 3)
    text = f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    return [
        f'<rect class="b{i}" x="{left:.1f}" y="{top}" width="{wide:.1f}" height="{BAR - 1}" rx="1"/>',
        f'<text class="m" text-anchor="{anchor}" x="{end:.1f}" y="{top + 8}" style="font-size:9px">{text}</text>',
    ]


def footer(result):
    what = f"Medians of {result['rounds']} rounds, {result['date'][:10]}, Linux {result['kernel']}"
    return f"{what}, {result['cpus']} CPUs, {result['filesystem']}"
