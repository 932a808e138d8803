"""What a figure is made of, as JSON values: everything that our code decides, nothing that matplotlib does."""

import numpy as np


def rounded(value):
    """Numbers with five digits, in lists."""
    return np.round(np.asarray(value, float), 5).tolist()


def colour(value):
    from matplotlib.colors import to_hex

    return to_hex(value, keep_alpha=True)


def described(figure):
    """Size, titles, legends, and of each panel its artists."""
    return {
        "size": rounded(figure.get_size_inches()),
        "title": figure.get_suptitle(),
        "title size": figure._suptitle.get_fontsize() if figure._suptitle else None,
        "legends": [legend(one) for one in figure.legends],
        "panels": [panel(ax) for ax in figure.axes],
    }


def legend(one):
    handles = getattr(one, "legend_handles", None) or one.legendHandles
    texts = one.get_texts()
    return {
        "columns": one._ncols,
        "frame": one.get_frame_on(),
        "entries": [
            [text.get_text(), text.get_fontsize(), face(handle)] for text, handle in zip(texts, handles, strict=True)
        ],
    }


def placed_legend(ax):
    """With its box, in shares of the panel."""
    box = ax.get_legend().get_bbox_to_anchor().transformed(ax.transAxes.inverted())
    return {**legend(ax.get_legend()), "box": np.round(box.bounds, 3).tolist()}


def face(handle):
    value = handle.get_facecolor() if hasattr(handle, "get_facecolor") else handle.get_color()
    return colour(np.ravel(value)[:4] if np.ndim(value) == 2 else value)


def panel(ax):
    return {
        "title": [ax.get_title(), ax.title.get_fontsize()],
        "labels": [ax.get_xlabel(), ax.get_ylabel(), ax.yaxis.label.get_fontsize()],
        "aspect": ax.get_aspect(),
        "has ticks": [bool(len(ax.get_xticks())), bool(len(ax.get_yticks()))],
        "limits": [rounded(ax.get_xlim()), rounded(ax.get_ylim())],
        "frame": [bool(ax.spines[side].get_visible()) for side in ("left", "right", "top", "bottom")],
        "images": [image(one) for one in ax.images],
        "lines": [line(one) for one in ax.lines],
        "texts": [text(one) for one in ax.texts],
        "patches": [[type(one).__name__, colour(one.get_facecolor())] for one in ax.patches],
        "collections": [collection(one) for one in ax.collections],
        "legend": placed_legend(ax) if ax.get_legend() else None,
    }


def image(one):
    data = np.ma.filled(one.get_array().astype(float), -1)
    return [list(data.shape), rounded(data.sum()), rounded(one.get_clim()), rounded(one.get_extent()), one.origin]


def line(one):
    marker = one.get_marker() if isinstance(one.get_marker(), str) else "other"
    data = np.asarray(one.get_xydata(), float)
    return [one.get_label(), colour(one.get_color()), one.get_alpha(), one.get_linewidth(), marker, rounded(data)]


def text(one):
    return [one.get_text(), rounded(one.get_position()), one.get_ha(), one.get_va(), one.get_fontsize()]


def collection(one):
    places = [path.vertices for path in one.get_paths() if len(path.vertices)]
    corners = rounded([np.min([p.min(0) for p in places], 0), np.max([p.max(0) for p in places], 0)]) if places else []
    widths = rounded(np.atleast_1d(one.get_linewidths())[:1])
    return [type(one).__name__, sum(map(len, places)), corners, widths, one.get_alpha()]
