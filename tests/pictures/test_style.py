from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")

from lightning_polystep.pictures.style import COLOURS, INK, name_axes, new_figure, png_of, svg_of

PNG = b"\x89PNG\r\n\x1a\n"


def drawn():
    figure, (axes,) = new_figure(1)
    axes.plot([1, 2], [3, 4], color=COLOURS[0])
    name_axes(axes, "step", "loss", "a < b")
    return figure


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (3, 1, 3), (4, 2, 3), (0, 1, 1)])
def test_axes_are_in_rows_and_spare_ones_are_empty(count, rows, columns):
    figure, axes = new_figure(count)
    assert len(axes) == count
    assert len(figure.axes) == rows * columns
    assert [each.axison for each in figure.axes] == [True] * count + [False] * (rows * columns - count)


def test_a_png_is_one_and_the_same_each_time():
    assert png_of(drawn()).startswith(PNG)
    assert png_of(drawn()) == png_of(drawn())


def test_an_svg_is_part_of_a_page_with_its_text_and_the_colours_of_the_page():
    text = svg_of(drawn(), "a", [(COLOURS[0], "var(--c0)"), (INK, "currentColor")])
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg")
    assert "viewBox" in root.attrib
    assert not {"width", "height"} & set(root.attrib)  # the page decides
    words = {element.text.strip() for element in root.iter() if element.tag.endswith("text")}
    assert {"step", "loss", "a < b"} <= words
    assert "stroke: var(--c0)" in text
    assert COLOURS[0] not in text
    assert "metadata" not in text


def test_names_inside_differ_between_figures_of_a_page_and_not_between_runs():
    first, again, other = (svg_of(drawn(), salt) for salt in ("a", "a", "b"))
    assert first == again

    def clips(text):
        return {e.attrib["id"] for e in ElementTree.fromstring(text).iter() if e.tag.endswith("clipPath")}

    assert clips(first)
    assert not clips(first) & clips(other)
