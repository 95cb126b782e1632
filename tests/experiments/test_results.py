"""What a notebook shows of a result."""

from raysim.experiments.results import Result
from raysim.views import ClientSet, View

from histories import small_history


def test_a_result_shows_its_table_and_its_picture():
    view = View("personalized", ClientSet("all", 8), "round 3")
    result = Result([], small_history(), "sqlite:///mlflow.db", "a < b", None, False, view)
    page = result._repr_html_()
    assert "<b>a &lt; b: as trained, all 8 clients, round 3, percent, mean ± standard deviation over seeds</b>" in page
    assert "60.0 ± 14.1" in page  # of 50 and 70
    figure = result.plot()
    assert figure.get_suptitle() == "a < b\nas trained, all 8 clients"
    assert len(figure.axes) == 3
    assert figure._repr_png_().startswith(b"\x89PNG")
