"""Boxes, arrows and words drawn as SVG, which is text: small, sharp at any size, the same on every machine."""

from typing import NamedTuple
from xml.sax.saxutils import escape

INK, PALE = '#333333', '#999999'
BLUE, GREEN, RED, YELLOW, GREY = '#cfe2f3', '#d9ead3', '#f4cccc', '#fff2cc', '#eeeeee'
LINE = 16  # from a line of words to the next


class Box(NamedTuple):
    """A rectangle, in pixels from the left and from the top."""

    x: float
    y: float
    width: float
    height: float

    @property
    def left(self):
        return self.x, self.y + self.height / 2

    @property
    def right(self):
        return self.x + self.width, self.y + self.height / 2

    @property
    def top(self):
        return self.x + self.width / 2, self.y

    @property
    def bottom(self):
        return self.x + self.width / 2, self.y + self.height


class Picture:
    """An SVG of `width` x `height` pixels, on white so that it reads on dark pages too.

    Args:
      title: what the picture shows, for those who cannot see it.
    """

    def __init__(self, title, width, height):
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" font-family="sans-serif" font-size="13">',
            f'<title>{escape(title)}</title>',
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0 0 8 4 0 8z" fill="{INK}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" fill="white"/>',
        ]

    def box(self, x, y, width, height, words='', colour=BLUE, **style):
        """A rectangle around words; `\\n` begins a line. Returns the `Box`."""
        box = Box(x, y, width, height)
        self.parts.append(
            f'<rect x="{px(x)}" y="{px(y)}" width="{px(width)}" height="{px(height)}" rx="4" fill="{colour}" '
            f'stroke="{PALE}"/>'
        )
        if words:
            self.words(x + width / 2, y + height / 2, words, **style)
        return box

    def words(self, x, y, words, anchor='middle', colour=INK, bold=False):
        """Words around the height y; `anchor` is where x lies in them: 'start', 'middle' or 'end'."""
        lines = words.split('\n')
        weight = ' font-weight="bold"' if bold else ''
        for number, line in enumerate(lines):
            height = y + 4.5 + LINE * (number - (len(lines) - 1) / 2)
            self.parts.append(
                f'<text x="{px(x)}" y="{px(height)}" text-anchor="{anchor}"'
                f' fill="{colour}"{weight}>{escape(line)}</text>'
            )

    def arrow(self, *points, colour=INK):
        """A line through points, with a head at the last."""
        self.line(*points, colour=colour, more=' marker-end="url(#head)"')

    def line(self, *points, colour=INK, more='', width=1.3):
        path = ' '.join(f'{px(x)},{px(y)}' for x, y in points)
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"{more}/>')

    def __str__(self):
        return '\n'.join([*self.parts, '</svg>\n'])


def px(number):
    """A number with as many digits as it needs, one behind the point at most."""
    return f'{number:.1f}'.removesuffix('.0')
