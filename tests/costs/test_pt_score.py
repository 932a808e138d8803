"""The published PT scores, and tables of rivals."""

import pytest

from nnunet_ext.costs.pt_score import Row, pt_scores, published_tables, read_table
from nnunet_ext.errors import ConfigurationError

# The printed value is a misrounding in four places; by the formula it is the neighbouring hundredth.
MISPRINTED = {
    ("amos-val", "E2ENet s=0.9"),
    ("amos-val", "E2ENet static s=0.9"),
    ("amos-test", "nnUNet"),
    ("btcv", "nnUNet (free leaderboard)"),
}


def test_the_papers_print_37_scores():
    assert sum(len(read_table(name)) for name in published_tables()) == 37


@pytest.mark.parametrize("name", published_tables())
def test_scores_are_as_printed(name):
    rows = read_table(name)
    for row, score in zip(rows, pt_scores(rows), strict=True):
        if (name, row.method) in MISPRINTED:
            assert f"{score:.2f}" != f"{row.pt_printed:.2f}"
            assert abs(score - row.pt_printed) <= 0.011
        else:
            assert f"{score:.2f}" == f"{row.pt_printed:.2f}", row


def test_a_score_by_hand():
    rows = [Row("small", 80.0, 5.0, 100.0), Row("good", 100.0, 10.0, 400.0)]
    assert pt_scores(rows) == [0.8 + 1.0, 1.0 + (0.5 + 0.25) / 2]


def test_a_table_of_ones_own(tmp_path):
    path = tmp_path / "rivals.csv"
    path.write_text("method,mdice,params_m,gflops\nmine,90,10,200\n")
    assert read_table(str(path)) == [Row("mine", 90.0, 10.0, 200.0)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("method,mdice,params_m\nmine,90,10\n", "line 2: needs the columns"),
        ("method,mdice,params_m,gflops\nmine,90,ten,200\n", "line 2: needs the columns"),
        ("method,mdice,params_m,gflops\nmine,90,0,200\n", "line 2: all numbers must be positive"),
        ("method,mdice,params_m,gflops\n", "has no rows"),
    ],
)
def test_bad_tables_are_refused(tmp_path, content, message):
    path = tmp_path / "rivals.csv"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=message):
        read_table(str(path))


def test_an_unknown_table_lists_the_published_ones():
    with pytest.raises(ConfigurationError, match="amos-test, amos-val, brats, btcv"):
        read_table("amos")
