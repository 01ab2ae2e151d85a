"""Whether figures over time are flat, and how they look."""

from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT, PANEL, GAP, TOP = 860, 70, 20, 90, 34, 48


def slope(times, values):
    """Of the line with the least squares, per second."""
    count = len(times)
    mean_time, mean = sum(times) / count, sum(values) / count
    spread = sum((t - mean_time) ** 2 for t in times)
    return sum((t - mean_time) * (v - mean) for t, v in zip(times, values)) / spread if spread else 0.0


def robust_slope(times, values):
    """The median of the slopes between all pairs (Theil and Sen): single outliers do not move it."""
    points = list(zip(times, values))
    return median([(w - v) / (u - t) for i, (t, v) in enumerate(points) for u, w in points[i + 1 :] if u != t] or [0.0])


def median(values):
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def judge(times, values, relative, absolute, noisy=False):
    """The growth of the fitted line from the first time to the last, the median, the growth that is allowed, and whether it
    stays below: `relative` of the median or `absolute`, whichever is more. Less is never wrong. `noisy`: outliers do not count."""
    growth = (robust_slope if noisy else slope)(times, values) * (times[-1] - times[0])
    allowed = max(relative * median(values), absolute)
    return growth, median(values), allowed, growth <= allowed


def draw(title, times, panels, warm_up):
    """One panel for each of `panels`: (label, unit, values, whether it is judged flat or None)."""
    height = TOP + len(panels) * (PANEL + GAP) + 24
    inner = WIDTH - LEFT - RIGHT
    last = max(times[-1], 1)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">',
        "<style>text{font:12px system-ui,sans-serif;fill:#1f2328}.h{font-size:15px;font-weight:600}.m{fill:#656d76;font-size:11px}"
        ".g{stroke:#d0d7de}.l{fill:none;stroke:#0969da;stroke-width:1.3}.w{fill:#8c959f;fill-opacity:.12}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.m{fill:#9198a1}.g{stroke:#3d444d}.l{stroke:#58a6ff}}</style>",
        f'<text class="h" x="12" y="24">{escape(title)}</text>',
    ]
    for number, (label, unit, values, flat) in enumerate(panels):
        top = TOP + number * (PANEL + GAP)
        high = max(values) or 1
        points = " ".join(
            f"{LEFT + inner * t / last:.1f},{top + PANEL - PANEL * v / high:.1f}" for t, v in zip(times, values)
        )
        verdict = {None: "", True: ", flat", False: ", not flat"}[flat]
        out += [
            f'<rect class="w" x="{LEFT}" y="{top}" width="{inner * min(warm_up / last, 1):.1f}" height="{PANEL}"/>',
            f'<line class="g" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{top + PANEL}" y2="{top + PANEL}"/>',
            f'<line class="g" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{top}" y2="{top}"/>',
            f'<text x="{LEFT}" y="{top - 6}">{escape(label)}{verdict}</text>',
            f'<text class="m" text-anchor="end" x="{LEFT - 6}" y="{top + 10}">{high:,.0f}</text>',
            f'<text class="m" text-anchor="end" x="{LEFT - 6}" y="{top + 24}">{escape(unit)}</text>',
            f'<text class="m" text-anchor="end" x="{LEFT - 6}" y="{top + PANEL}">0</text>',
            f'<polyline class="l" points="{points}"/>',
        ]
    out.append(f'<text class="m" x="{LEFT}" y="{height - 10}">0 to {last / 60:.0f} minutes; shaded: warm-up, not judged</text>')
    return "\n".join([*out, "</svg>\n"])
