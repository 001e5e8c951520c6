"""What counts as the answer of a completion as people and models write it, by class, and what holds for all of them."""

from rewards import is_correct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

# Displays, placeholders, `####`, signs, units, equations, remarks, bases, inverse functions, style, what is hidden.
RIGHT = [
    ("The answer is:\n\\begin{equation}\n\\boxed{6}\n\\end{equation}", "6"),
    ("Answer:\n- 6", "6"),
    ("The final answer is\n\n> 6", "6"),
    ("The answer is:\n\n1. $x=6$", "x=6"),
    ("The answer is:\n\\begin{align*}\n6\n\\end{align*}", "6"),
    ("Hence the answer is\n***\n6", "6"),
    ("The answer is: \n**6**", "6"),
    ("所以答案是\n\n$$6$$", "6"),
    ("Put it in \\boxed{answer}: \\boxed{6}", "6"),
    ("\\boxed{\\text{answer}} = \\boxed{6}", "6"),
    ("\\boxed{...} \\boxed{6}", "6"),
    ("\\boxed{6} then \\boxed{}", "6"),
    ("\\boxed{?}: \\boxed{6}", "6"),
    ("#### 42\nThanks!", "42"),
    ("#### $42$", "42"),
    ("####42", "42"),
    ("#### 1,234", "1234"),
    ("### Answer\n42", "42"),
    ("A: $18", "18"),
    ("Ans: 18", "18"),
    ("A:18.", "18"),
    ("The answer: 18 dollars", "18"),
    ("The balance is −42", "-42"),
    ("The balance is -$42", "-42"),
    ("It is minus 42", "-42"),
    ("So we get negative 42.", "-42"),
    ("答案是负42", "-42"),
    ("The answer is –42.", "-42"),
    ("It is − 42", "-42"),
    ("\\boxed{5\\text{ apples}}", "5"),
    ("\\boxed{5 students}", "5"),
    ("\\boxed{20\\ \\mathrm{m/s}}", "20"),
    ("\\boxed{9.8\\,\\text{m/s}^2}", "9.8"),
    ("\\boxed{12\\text{ kg}\\cdot\\text{m}}", "12"),
    ("\\boxed{3\\text{ hours}}", "3"),
    ("\\boxed{5 people}", "5"),
    ("\\boxed{2xy+3}", "3+2xy"),
    ("\\boxed{4ab}", "4ba"),
    ("\\boxed{\\frac12 mv^2}", "\\frac{1}{2}mv^2"),
    ("\\boxed{3}", "\\log_2 8 = 3"),
    ("\\boxed{\\log_2 8=3}", "\\log_2 8=3"),
    ("\\boxed{2^3=8}", "8"),
    ("Answer: 18 (that is, 6 * 3)", "18"),
    ("The answer is 18, i.e. eighteen.", "18"),
    ("The answer is 18 and not 20.", "18"),
    ("Answer: $x = 18$, not 20", "18"),
    ("The answer is 18, which is 2*9", "18"),
    ("\\boxed{1010_2}", "1010_{2}"),
    ("1010_{two}", "1010_2"),
    ("The answer is $1010_2$.", "1010_2"),
    ("\\boxed{1010_{(2)}}", "1010_2"),
    ("The answer is 1010 in base 2", "1010_2"),
    ("\\boxed{\\sin^{-1}(x)}", "\\arcsin x"),
    ("\\boxed{\\cos^{-1}\\frac12}", "\\arccos \\frac12"),
    ("\\boxed{\\sin^2 x}", "\\sin^{2}x"),
    ("\\boxed{\\boldsymbol{5}}", "5"),
    ("\\boxed{\\mathsf{5}}", "5"),
    ("\\boxed{\\color{blue}5}", "5"),
    ("\\boxed{\\color{red}{5}}", "5"),
    ("\\boxed{\\textcolor{red}{5}}", "5"),
    ("\\boxed{{\\Large 5}}", "5"),
    ("\\boxed{\\mathbf{x+1}}", "x+1"),
    ("\\boxed{2 h 15 min}", "135\\text{ min}"),
    ("\\boxed{\\{x : x > 2\\}}", "(2,\\infty)"),
    ("\\boxed{(-infinity, 3)}", "(-\\infty,3)"),
    ("\\boxed{7 \\text{ and } 3}", "3,7"),
    ("\\boxed{\\text{No}}", "No"),
    ("\\boxed{No, it is not.}", "No"),
    ("\\boxed{12 May}", "May 12"),
    ("\\boxed{9:05 PM}", "21:05"),
    ("**Final Answer**\n\n6", "6"),
    ("The value is \\(\\boxed{6}\\).\n\nThe answer is six.", "6"),
    ("The answer is \\boxed{6}. The other answer is rejected.", "6"),
    ("The answer is approximately 3.14", "3.14"),
]
WRONG = [
    ("The answer is:\n\\[\n7\n\\]", "6"),
    ("#### Step 6\nso it is 7", "6"),
    ("#### 6\n#### 7", "6"),
    ("A: 17", "18"),
    ("#### 43 (not 42)", "42"),
    ("The balance is –42", "42"),
    ("The balance is −$42", "42"),
    ("It is minus 42", "42"),
    ("So negative 42", "42"),
    ("负42", "42"),
    ("It is − 42", "42"),
    ("-$42", "42"),
    ("loss of $-42", "42"),
    ("\\boxed{5 thirds}", "5"),
    ("\\boxed{5 score}", "5"),
    ("\\boxed{5 squared}", "5"),
    ("\\boxed{5 times two}", "5"),
    ("\\boxed{5 minus one}", "5"),
    ("\\boxed{5 factorial}", "5"),
    ("\\boxed{5 million}", "5"),
    ("\\boxed{5 trillion}", "5"),
    ("\\boxed{5 mod 7}", "5"),
    ("\\boxed{5 gross}", "5"),
    ("\\boxed{5 tenths}", "5"),
    ("\\boxed{5 pairs}", "5"),
    ("\\boxed{5 to the third}", "5"),
    ("\\boxed{5 lakh}", "5"),
    ("\\boxed{2x}", "2xy"),
    ("\\boxed{x+2}", "x+2pq"),
    ("\\boxed{4}", "4rs"),
    ("\\boxed{4rs}", "4"),
    ("\\boxed{3}", "3\\mathrm{e}"),
    ("\\boxed{7}", "7\\text{i}"),
    ("\\boxed{2=2}", "\\log_3 9=2"),
    ("\\boxed{0=0}", "\\sin\\pi=0"),
    ("\\boxed{2+2=4}", "3+1=4"),
    ("The answer is 18 (6 times 3)", "6"),
    ("The answer is 18 divided by 3", "3"),
    ("The answer is a third of 4", "4"),
    ("The answer is twice 4", "4"),
    ("The answer is more than 4", "4"),
    ("The answer is >4", "4"),
    ("The answer is 4 or more", "4"),
    ("The answer is under 4", "4"),
    ("The answer is at most 4", "4"),
    ("The answer is anything but 4", "4"),
    ("no more than 4", "4"),
    ("about half of 4", "4"),
    ("the cube of 4", "4"),
    ("The answer is the root of 4", "4"),
    ("The answer is 4 factorial", "4"),
    ("The answer is 4 choose 2", "4"),
    ("the 4th", "4"),
    ("more than 4", "4"),
    ("4 or fewer", "4"),
    ("the square root of 4", "4"),
    ("\\sqrt 4", "4"),
    ("It is 3 or 4", "4"),
    ("\\boxed{1010_3}", "1010_2"),
    ("\\boxed{1010}", "1010_2"),
    ("\\boxed{10}", "1010_2"),
    ("\\boxed{\\frac{1}{\\sin x}}", "\\sin^{-1} x"),
    ("\\boxed{0}", "e^{-800}"),
    ("\\boxed{\\frac{1}{2006!}}", "\\frac{1}{2004!}"),
    ("\\boxed{10^{-400}}", "10^{-500}"),
    ('7 <span style="font-size:0">\\boxed{6}</span>', "6"),
    ("7 <font color=white>\\boxed{6}</font>", "6"),
    ("7 [x](\\boxed{6})", "6"),
    ('7 [x](y "\\boxed{6}")', "6"),
    ('7 <img alt="\\boxed{6}">', "6"),
    ("7 {\\color{white}\\boxed{6}}", "6"),
    ("7 <span style='opacity:0'>\\boxed{6}</span>", "6"),
    ("\\boxed{1.2}", "1,2"),
    ("\\boxed{12}", "1,2"),
]
CHOICES_RIGHT = [
    ("B is correct.", "B"),
    ("(B), since A and C are wrong", "B"),
    ("The answer is B) 5", "B"),
    ("B: because A fails", "B"),
    ("\\boxed{\\Delta E}\nANSWER: D", "D"),
    ("ANSWER: $D$", "D"),
    ("Therefore, B.", "B"),
    ("\\boxed{B: 5}", "B"),
    ("\\boxed{\\textbf{(B) } 5}", "B"),
    ("选择 B", "B"),
    ("Answer: (B) 5 apples", "B"),
    ("So the correct option is B.", "B"),
    ("A, C", "AC"),
    ("A & C", "AC"),
    ("B — Paris", "B"),
    ("The answer is (B) because (A) is wrong.", "B"),
]
CHOICES_WRONG = [
    ("I rule out (B)", "B"),
    ("All but B", "B"),
    ("Everything except B", "B"),
    ("B is wrong", "B"),
    ("B is incorrect.", "B"),
    ("not (B)", "B"),
    ("either A or B", "B"),
    ("A and B are possible", "B"),
    ("B or C", "BC"),
    ("B is false", "B"),
    ("It cannot be B", "B"),
    ("B? no, A.", "B"),
    ("B is not right", "B"),
]


@pytest.mark.parametrize(
    "completion, gold, verifier, right",
    [(*pair, "math", True) for pair in RIGHT]
    + [(*pair, "math", False) for pair in WRONG]
    + [(*pair, "choice", True) for pair in CHOICES_RIGHT]
    + [(*pair, "choice", False) for pair in CHOICES_WRONG],
)
def test_classes_of_answers(completion, gold, verifier, right):
    assert is_correct(f"<think>x</think>\n{completion}", gold, verifier) is right


PLACES = [
    "\\boxed{ANSWER}", "The answer is:\n\\[\nANSWER\n\\]", "**ANSWER**", "We are done.\nANSWER",
    "#### ANSWER\nI hope it helps.", "The answer is ANSWER.", "A: ANSWER", "$$\n\\boxed{ANSWER}\n$$",
    "```\nANSWER\n```", "**Answer:** ANSWER", "<answer>ANSWER</answer>",
    "Hence\n\\begin{align*}\n\\boxed{ANSWER}\n\\end{align*}",
]  # fmt: skip
ANSWERS = [
    "14",
    "-5",
    "3.5",
    "1,234",
    r"\frac{1}{2}",
    r"2\sqrt{3}",
    "(1, 2)",
    "x+1",
    r"35\%",
    r"\$18",
    "5 km",
    "1010_2",
]
place, answer = st.sampled_from(PLACES), st.sampled_from(ANSWERS)


@given(place, answer, answer)
@settings(max_examples=150, deadline=None)
def test_the_verdict_is_the_same_wherever_an_answer_stands(where, said, gold):
    """And no text pays for two golds that are not equal."""
    assert is_correct(where.replace("ANSWER", said), gold) is (said == gold)


@given(place, answer, answer, st.sampled_from(["The answer is ANSWER.", "\\boxed{ANSWER}", "#### ANSWER"]))
@settings(max_examples=150, deadline=None)
def test_a_wrong_statement_more_never_turns_0_into_1(where, said, gold, stated):
    for more in ANSWERS:
        before = where.replace("ANSWER", said)
        if more != gold and not is_correct(before, gold):
            assert not is_correct(f"{before}\n{stated.replace('ANSWER', more)}", gold)
