"""Answers in words: every way to say an option, what says none, and what that makes probable."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from clipstem.ask.answers import LetterLogprobs, Reply
from clipstem.ask.parsing import PREFERENCE, Parsed, Way, parse, probabilities
from clipstem.ask.prompts import LETTERS

OPTIONS = ("square", "circle", "dark red", "red")

FORMS = (
    "{}", " {}\n", "({})", "[{}]", "{}.", "{})", "'{}'", "**{}**", "*{}*", "`{}`",
    "$\\boxed{{{}}}$", "\\boxed{{\\text{{{}}}}}", "Answer: {}", "Answer: {}.", "answer: ({})",
    "**Answer:** {}",
    "**Answer: {}**", "Final answer: **({})**", "The answer is {}", "The answer is {}.",
    "the answer is ({}), I think", "The correct answer is: {}", "The correct option is {}.",
    "The answer is:\n\n{}", "The right answer would be {}.", "Answer - {}", 'The answer is "{}".',
    "Option {}", "I choose option {}.", "I would go with ({}).", "{} is correct.",
    "{} is the right answer", "I think it's {}", "So it must be {}!", "{}\n\nAs one can see.",
    "Let me see. It has four sides.\n\n{}", "Not the first one.\n**{}**", "It is ({}).",
    "<think>The answer is A. Or B? Answer: D</think>\n{}", "My answer: option {}",
)  # fmt: skip
"""How language models state a letter."""

WITH_TEXT = ("{}. {}", "{}) {}", "({}) {}", "{}: {}", "**{}.** {}", "Answer: {}. {}", "{} - {}")


@given(st.sampled_from(FORMS), st.integers(0, 3))
def test_a_stated_letter_is_understood(form: str, option: int) -> None:
    found = parse(form.format(LETTERS[option]), OPTIONS)
    assert (found.option, found.way) == (option, Way.LETTER)
    assert found.place is not None
    assert form.format(LETTERS[option])[found.place] == LETTERS[option]


@given(st.sampled_from(["{}", "({})", "{}.", "**{}**", "answer: {}", "Answer: ({})"]),
       st.integers(0, 3))  # fmt: skip
def test_small_letters_count_where_nothing_follows(form: str, option: int) -> None:
    found = parse(form.format(LETTERS[option].lower()), OPTIONS)
    assert (found.option, found.way) == (option, Way.LETTER)


@given(st.sampled_from(WITH_TEXT), st.integers(0, 3), st.integers(0, 3))
def test_a_letter_goes_before_the_text_beside_it(form: str, option: int, other: int) -> None:
    assume(option == other or form != "{} - {}")
    found = parse(form.format(LETTERS[option], OPTIONS[other]), OPTIONS)
    assert found.option == option


@pytest.mark.parametrize("text", ["The answer is {} because {} is wrong.", "{} because {} is not.",
                                  "Answer: {}\n\n{} is wrong, it has corners."])  # fmt: skip
def test_reasons_that_name_other_letters_change_nothing(text: str) -> None:
    if text.startswith("{}"):  # no statement, and two letters
        assert parse(text.format("B", "A"), OPTIONS).option is None
    else:
        assert parse(text.format("B", "A"), OPTIONS) == Parsed(1, Way.LETTER, text.index("{}"))


@given(st.sampled_from(["{}", "It is {}.", "the {}", "I see a {} here", "The answer is {}",
                        "**{}**", "Answer: {}!", '"{}"', "{} because of its form",
                        "Not so easy.\nBut it is {}"]), st.integers(0, 3))  # fmt: skip
def test_an_options_text_is_understood(form: str, option: int) -> None:
    for text in (OPTIONS[option], OPTIONS[option].upper()):
        found = parse(form.format(text), OPTIONS)
        assert (found.option, found.way) == (option, Way.TEXT)


@pytest.mark.parametrize(
    ("text", "options", "option", "way"),
    [
        ("cirlce", OPTIONS, 1, Way.NEAR),
        ("a sqare", OPTIONS, 0, Way.NEAR),
        ("photosyntesis", ("photosynthesis", "respiration"), 0, Way.NEAR),
        ("12", ("12", "21"), 0, Way.TEXT),
        ("It is 12.", ("12", "120"), 0, Way.TEXT),
        ("It is -5.", ("5", "-5"), 1, Way.TEXT),
        ("The answer is −3.", ("3", "-3"), 1, Way.TEXT),
        ("−5 m", ("5 m", "-5 m"), 1, Way.TEXT),
        ("The answer is –5", ("−5", "5"), 0, Way.TEXT),
        ("points 1,3 and 5 of it", ("points 1, 3 and 5 of it", "none"), 0, Way.NEAR),
        ("-5 metres", ("5 meters", "-5 meters"), 1, Way.NEAR),
        (".5%", ("5%", "50%", "0.5%"), 2, Way.TEXT),
        ("north-east", ("north", "northeast", "east"), 1, Way.NEAR),
        ("non-metal", ("metal", "nonmetal"), 1, Way.NEAR),
        ("<think>A?</think>The answer is B. <think>Or", OPTIONS, 1, Way.LETTER),
        ("3/4", ("3/4", "4"), 0, Way.TEXT),
        ("2.50", ("2", "2.50"), 1, Way.TEXT),
        ("Vitamin C", ("vitamin D", "vitamin C"), 1, Way.TEXT),
        ("A circle", OPTIONS, 1, Way.TEXT),
        ("Answer: A circle", OPTIONS, 1, Way.TEXT),
        ("The answer is A. circle", OPTIONS, 0, Way.LETTER),
        ("None of these", ("one", "none of these"), 1, Way.TEXT),
        ("C", ("C", "B", "A"), 2, Way.LETTER),  # the letter, where options are letters too
        ("So, C.", OPTIONS, 2, Way.LETTER),
        ("A. square is wrong.\nB. circle is right.\nAnswer: B", OPTIONS, 1, Way.LETTER),
        ("A. is wrong.\nB", OPTIONS, 1, Way.LETTER),
    ],
)
def test_cases(text: str, options: tuple[str, ...], option: int, way: Way) -> None:
    found = parse(text, options)
    assert (found.option, found.way) == (option, way)


@pytest.mark.parametrize(
    "text",
    [
        "", " \n", "E", "Z.", "1", "none", "I don't know.", "A or B", "Both A and B", "not B",
        "The answer is A or B", "Neither A nor B is correct", "It isn't a square.", "A\nB\nC\nD",
        "The circle is not a polygon", "a square or a circle", "A. square\nB. circle\nC. dark red",
        "I'm sorry, but I can't help with that.", "As an AI model, I cannot see pictures.",
        "I", "A very good question!", "123", "{}", "I would choose C over option B", "triangle",
        "<think>\nOkay, let me look at option A first. It says", "<think>maybe a circle. But wait",
    ],
)  # fmt: skip
def test_what_names_no_option_is_not_understood(text: str) -> None:
    assert parse(text, OPTIONS) == Parsed(None, Way.UNPARSED)


def test_other_numbers_are_not_near() -> None:
    assert parse("123", ("124", "1234")).option is None
    assert parse("12 meters", ("13 meters", "14 meters")).option is None


def test_options_that_read_the_same_are_not_told_apart_by_their_text() -> None:
    assert parse("red", ("red", "Red", "blue")).option is None
    assert parse("B", ("red", "Red", "blue")).option == 1


def test_options_without_texts_have_letters() -> None:
    assert parse("The answer is B.", ("", "", "")).option == 1
    assert parse("circle", ("", "", "")).option is None


words = st.text(st.characters(codec="utf-8"), max_size=40)


@given(words | st.lists(st.sampled_from(["answer", " is ", "A", "B", "(", ")", "*", "\n", ".",
                                         "not", "\\boxed{", "circle", "option "])).map("".join),
       st.lists(words.filter(str.strip), min_size=1, max_size=26))  # fmt: skip
def test_whatever_is_said_there_is_one_option_or_none(text: str, options: list[str]) -> None:
    found = parse(text, options)
    assert (found.option is None) == (found.way is Way.UNPARSED)
    if found.option is not None:
        assert 0 <= found.option < len(options)
    if found.place is not None:
        assert text[found.place].upper() == LETTERS[found.option or 0]


@given(st.lists(st.text("abcdefgh", min_size=3, max_size=9), min_size=2, max_size=6, unique=True),
       st.data())  # fmt: skip
def test_an_options_own_text_means_it(options: list[str], data: st.DataObject) -> None:
    option = data.draw(st.integers(0, len(options) - 1))
    assert parse(options[option], options).option == option


@pytest.mark.parametrize(
    "piece",
    ["answer", "answer is ", "*", " ", "(", "A ", "A", "**", "A. \n", "n't", "\\boxed{", "\n", "a'",
     "answer : ", "option letter ", "x", ": ", "\0", "circle ", "</think>", "\n ", "a.b,"],
)  # fmt: skip
def test_long_answers_are_read_in_time_that_grows_with_their_length(piece: str) -> None:
    text = "answer" + piece * (100_000 // len(piece))
    began = time.process_time()
    parse(text, OPTIONS)
    assert time.process_time() - began < 20  # takes 0.2 s; a square of the length takes minutes


# ---------------------------------------------------------------------------- probabilities


def reply(text: str, *letters: LetterLogprobs) -> Reply:
    return Reply(text, "stop", "m", 1, 1, letters)


def probs(*texts: str, count: int = 4, guess: str = "", use_logprobs: bool = False) -> np.ndarray:
    replies = [reply(text) for text in texts]
    parsed = [parse(text, OPTIONS[:count]) for text in texts]
    return probabilities(replies, parsed, count, use_logprobs, guess)[0]


def test_one_answer_gives_its_option_more_than_half() -> None:
    np.testing.assert_allclose(probs("B"), [0.125, 0.625, 0.125, 0.125])
    np.testing.assert_allclose(probs("B", count=2), [0.25, 0.75])


def test_samples_give_shares() -> None:
    np.testing.assert_allclose(probs("B", "B", "A", "?", count=2), [1.5 / 4, 2.5 / 4])


@given(st.lists(st.sampled_from(["A", "B", "C", "D", "?"]), max_size=9), st.text(max_size=3))
def test_shares_sum_to_1_and_the_most_frequent_wins(texts: list[str], guess: str) -> None:
    found = probs(*texts, guess=guess)
    times = [texts.count(letter) for letter in "ABCD"]
    assert found.sum() == pytest.approx(1) and (found > 0).all()
    assert times[int(found.argmax())] == max(times)


def test_guesses_are_spread_evenly_and_come_again() -> None:
    found = [probs("?", guess=f"0/q{number}") for number in range(4000)]
    choices = np.bincount([int(it.argmax()) for it in found], minlength=4)
    assert (abs(choices - 1000) < 120).all()  # four standard deviations
    np.testing.assert_allclose(found[0], 0.25, atol=2 * PREFERENCE)
    np.testing.assert_array_equal(found[7], probs("?", guess="0/q7"))


def test_logprobs_of_the_letters_become_probabilities() -> None:
    given = {"B": np.log(0.6), "A": np.log(0.2), "C": np.log(0.1), "Q": np.log(0.05)}
    answer = reply("Answer: B", LetterLogprobs(8, 9, given, 0.05, 0.3))
    parsed = [parse(answer.text, OPTIONS)]
    found, has_logprobs = probabilities([answer], parsed, 4, True, "")
    assert has_logprobs
    # D is not among those given: at most as probable as the least of them, Q.
    np.testing.assert_allclose(found, np.array([0.2, 0.6, 0.1, 0.05]) / 0.95)
    assert not probabilities([answer], parsed, 4, False, "")[1]


@pytest.mark.parametrize(
    ("given", "least", "rest", "expected"),
    [
        ({"B": 0.9}, 0.9, 0.1, [0.1 / 3, 0.9, 0.1 / 3, 0.1 / 3]),  # no other token is named
        ({"B": 0.9}, 0.001, 0.05, [0.001, 0.9, 0.001, 0.001]),  # words are
        ({"B": 1.0}, 1.0, 0.0, [0, 1, 0, 0]),
        ({"B": 0.5, "A": 0.25}, 0.25, 0.0, [0.25, 0.5, 0, 0]),
    ],
)
def test_letters_that_are_not_named_get_no_more_than_can_be(
    given: dict[str, float], least: float, rest: float, expected: list[float]
) -> None:
    logprobs = {letter: float(np.log(share)) for letter, share in given.items()}
    answer = reply("B", LetterLogprobs(0, 1, logprobs, least, rest))
    found, _ = probabilities([answer], [parse("B", OPTIONS)], 4, True, "")
    np.testing.assert_allclose(found, np.array(expected) / sum(expected))


@pytest.mark.parametrize(
    "letters",
    [
        (),
        (LetterLogprobs(0, 1, {"A": -0.1}, 0.1, 0.1),),  # of another place
        (LetterLogprobs(8, 9, {}, 0.1, 0.1),),
        (LetterLogprobs(8, 9, {"B": float("nan"), "A": float("inf"), "C": -1e300}, 0.1, 0.1),),
        (LetterLogprobs(8, 9, {"B": -0.1}, float("nan"), float("nan")),),
    ],
)
def test_without_usable_logprobs_the_answer_counts(letters: tuple[LetterLogprobs, ...]) -> None:
    answer = reply("Answer: B", *letters)
    found, has_logprobs = probabilities([answer], [parse(answer.text, OPTIONS)], 4, True, "")
    assert not has_logprobs
    np.testing.assert_allclose(found, [0.125, 0.625, 0.125, 0.125])
