import pytest

from snnet_vitdet.data.sentences import about, some


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (["a.jpg"], "1 of 7 images is empty (a.jpg): copy it again."),
        (["a.jpg", "b.jpg"], "2 of 7 images are empty (a.jpg, b.jpg): copy it again."),
        (list("abcde"), "5 of 7 images are empty (a, b, c and 2 more): copy it again."),
    ],
)
def test_a_sentence_counts_and_shows_the_first_three(found, says):
    assert about(found, 7, "images", "are empty", "copy it again") == says


def test_a_sentence_may_have_no_examples_and_no_remedy():
    assert about([1], 2, "images", "have a flaw", describe=None) == "1 of 2 images has a flaw."


def test_examples_are_shortened_and_cannot_act_on_a_terminal():
    assert some(["x" * 500, "\x1b[31m"]) == "x" * 300 + "…, \\x1b[31m"
