"""The colours of classes, models and errors in every figure and viewer."""

from matplotlib.colors import to_rgb

# Okabe and Ito's colours but black, blue (dark on a dark image) and vermilion (the red of what is missed, to a
# red-green blind eye). Then those that were found farthest from all others and from `ERRORS`, by the smallest distance
# in CIELAB among normal vision and full deuteranopia and protanopia as Machado, Oliveira and Fernandes simulate them
# (IEEE TVCG 15(6), 2009): no two are nearer than 16 in any of the three; a distance of 2 is just seen.
PALETTE = (
    *("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#CCFFA6", "#A60D8C"),
    *("#CCFFD9", "#660DFF", "#8C4066", "#B3BF80", "#E6FF80", "#404DBF", "#BF7300"),
    *("#3380BF", "#B31A00", "#8099FF", "#E6B359", "#4D7340", "#FF8CA6", "#80D9CC"),
)
# Kinds of `error_map` -> name and colour.
ERRORS = {1: ("missed", "#E6194B"), 2: ("extra", "#00F0FF"), 3: ("another class", "#B347FF")}


def label_colour(position: int) -> tuple[float, float, float]:
    """Colour of the label at that position of the legend; after the palette follow lighter, then darker shades."""
    red, green, blue = to_rgb(PALETTE[position % len(PALETTE)])
    cycle = position // len(PALETTE) % 3
    if cycle == 1:
        return (red + 1) / 2, (green + 1) / 2, (blue + 1) / 2
    return (red, green, blue) if cycle == 0 else (0.55 * red, 0.55 * green, 0.55 * blue)
