"""Tables of answers: `gold | answer`, one pair a line. Read by `test_equality.py` and the property tests."""

EQUIVALENT = r"""
14 | 14.
14 | \mathbf{14}
14 | $14$
14 | １４
14 | ١٤
14 | +14
14 | 14.0
14 | (14)
-5 | −5
-5 | - 5
12345 | 12\,345
12345 | 12,345
12345 | 12{,}345
1000000 | 1 000 000
1000000 | 1,000,000.00
1000000 | 10^6
11111111100 | 11,\! 111,\! 111,\! 100
\frac12 | \frac{1}{2}
\frac12 | \dfrac 1 2
\frac12 | 0.5
\frac12 | ½
\frac{3}{4} | 3 \div 4
-\frac{3}{4} | \frac{-3}{4}
\frac{11}{2} | 5\tfrac{1}{2}
\frac{5}{2} | 2 1/2
\frac13 | 0.\overline{3}
\frac13 | 0.\dot{3}
\frac13 | 0.(3)
\frac13 | 0.333\ldots
\frac13 | 33.\overline{3}\%
\frac13 | 0.333333
\frac16 | 0.1\overline{6}
2.5 | 2,5
\pi | π
\pi | 3.141593
\sqrt2 | √2
\sqrt{2} | 1.414214
\sqrt{5} | 5^{1/2}
2\sqrt{3} | \sqrt{12}
\frac{\sqrt{2}}{2} | \frac{1}{\sqrt{2}}
2\ln 3 | \ln 9
2+3i | 3i+2
i | e^{i\pi/2}
1+i | \sqrt{2}e^{i\pi/4}
300000 | 3\times10^5
6.02 \times 10^{23} | 6.02e23
2^{100} | 1267650600228229401496703205376
50\% | 0.5
50\% | 50
\frac12 | 50\%
14 | 7 + 7 = 14
14 | x = 14
14 | total = 14
14 | 14 or 14
x=5 | 5
f(x)=x+1 | f(t)=t+1
f(x)=x+1 | x+1
y = 2x + 1 | 2x+1
y = 2x + 1 | 2x - y + 1 = 0
x^2+y^2=4 | y^2 = 4 - x^2
x^2-1 | (x-1)(x+1)
x^2 | x²
|x| | \sqrt{x^2}
\sin 2x | 2\sin x\cos x
\tan\theta | \frac{\sin\theta}{\cos\theta}
2^{n+1} | 2\cdot 2^n
(1,2) | (1, 2)
(1,2) | x=1, y=2
(1,2) | 1,2
(p,q)=(3,2) | (3,2)
p=5,q=2;p=7,q=2 | (5,2),(7,2)
\{1,2,3\} | \{3,2,1\}
\{1,2\} | 2,1
1,2 | x=1 \text{ or } x=2
7 \text{ and } 3 | 3, 7
\pm 2 | 2,-2
1\pm\sqrt2 | 1+\sqrt2, 1-\sqrt2
[59, 113) | \left[59,113\right)
[1,2) | 1\le x<2
x>3 | (3,\infty)
x \in [-2,7] | [-2,7]
(-\infty,0)\cup(1,\infty) | (1,\infty) \cup (-\infty, 0)
2k\pi, k\in\mathbb{Z} | 2n\pi, n \in \mathbb{Z}
\{k\pi \mid k\in\mathbb{Z}\} | n\pi, n \in Z
\emptyset | \{\}
1 : 2 | 2:4
A:B=1 | 1
\begin{pmatrix}1&2\\3&4\end{pmatrix} | \begin{bmatrix}1 & 2 \\ 3 & 4\end{bmatrix}
\begin{pmatrix}1&2\\3&4\end{pmatrix} | \left[\begin{array}{cc}1 & 2 \\3 & 4\end{array}\right]
5 km | 5000 m
5 km | 5 kilometers
5\text{ cm} | 5
5 | 5 cm
5 | \$5
\$5 | 5 dollars
\$3.50 | 350 cents
36 km/h | 10 m/s
60 mph | 60 miles per hour
2 hours | 120 min
10 m^2 | 10 square meters
90^\circ | 90
25^\circ C | 25 °C
3:30 PM | 3:30 p.m.
x>2 \text{ or } x<-1 | (-\infty,-1)\cup(2,\infty)
\mathbb{R} | \mathbb R
|AB| = 5 | 5
a + b = 7 | a + b = 7
7 | a + b = 7
30 | \angle ABC = 30^\circ
\frac13 | \frac{1}{3} \approx 0.33
n^2+n | n(n+1)
100! | 100!
Alice | \text{Alice}
Alice | alice.
the dog | dog
\sqrt[3]{2} | 2^{1/3}
-\sqrt[3]{2} | \sqrt[3]{-2}
-\frac32 | -1 1/2
\begin{pmatrix}1\\2\end{pmatrix} | \begin{pmatrix}1\\2\\\end{pmatrix}
2\pi | 2pi
\sqrt2 | sqrt(2)
5000000 | 5 million
28\% | 28 percent
28\% | 28\text{ percent}
28\% | 28 pct
x=1, y=2 | (1,2)
x=1, y=2 | y=2, x=1
x=1, y=2 | 1, 2
1,000 | 1000
12000 | 1.2万
\frac{4}{33} | 0.\dot{1}\dot{2}
\frac17 | 0.\dot{1}4285\dot{7}
১৪ | 14
12:00 | 12:00
9:30 | 09:30
New York | new york
"""
DIFFERENT = r"""
14 | 2 + 3 \times 4
42 | 6 \cdot 7
14 | \frac{28}{2}
1024 | 2^{10}
12 | \sqrt{144}
120 | 5!
10 | \binom{5}{2}
30 | 15\% \text{ of } 200
6 | \gcd(12,18)
0.5 | \sin(30^\circ)
1 | e^0
4 | 8^{2/3}
\frac{5}{6} | \frac12+\frac13
5050 | \sum_{k=1}^{100}k
\frac13 | \int_0^1 x^2 dx
1 | \lim_{x\to0}\frac{\sin x}{x}
5 | 4 = 5
15 | 7 + 7 = 15
3 | 1 + 1 = 2 = 3
14 | 13 or 14
14 | 13, 14
1,2 | 1
(1,2) | \{1,2\}
\{1,2\} | (1,2)
(1,2) | (2,1)
(1,2) | [1,2]
[1,2] | (1,2)
(0,1] | (0,1)
(0,1)\cup(2,3) | (0,3)
5 m | 5 km
5 km | 5 miles
5 \text{ kg} | 5 g
10 m^2 | 10 m^3
10 m^2 | 10 m
60 mph | 60 km/h
5 apples | 5 oranges
25^\circ C | 25^\circ F
\$3.50 | €3.50
0.0000001 | 0.0
10^{-7} | 3e-7
1e-8 | 9e-8
0.000123 | 0.000124
6.02 \times 10^{23} | 6.03e23
123456789123456789 | 123456789123456788
\frac13 | 0.333
\pi | 3.14
\pi | 22/7
50\% | 5\%
2+3i | 2-3i
x=5 | y=5
x^2-1 | x^2
2x+1 | 2y+1
y = 2x + 1 | 1
y=2x+1 | y=2x+2
x^2+y^2=4 | 4
x^2+y^2=4 | x^2+y^2=5
x>3 | x\ge 3
3\sqrt{2} | 3
2\ln 3 | 3
2+3i | 2
10^{5} | 10
1 : 2 | 2
1:2 | 2:1
\pm 3 | 3
k\pi, k\in\mathbb{Z} | n\pi, n\in\mathbb{N}
0 | \emptyset
\begin{pmatrix}1\\2\end{pmatrix} | \begin{pmatrix}2\\1\end{pmatrix}
14 | 1 4
14 | 14 \pm 1
14 | 13<x<15
14 | 14 = 15
14 | ?
(2,3) | (2,3,4)
2,3 | 2, 3, 4
June 5 | June 6
1000 | 1.000
14 | fourteen
Yes | No
Alice | Bob
Alice | Alice and Bob
3:30 PM | 3:30 AM
12:00 | 1:00
1:2 | 1:2:3
1,000,000 | 0, 1
1,000 | (0,1)
1,2 | [1,2)
[1,2) | 1,2
x=1, y=2 | (2,1)
x=1, y=2 | 2,1
x=1, y=2 | \{1,2\}
5 km | 5\%
5 km | 5 percent
\$5 | 5\%
14 | 14 + 0
14 | -(-14)
14 | 0 \cdot 3 + 14
\frac{1}{6} | \frac{1/2}{3}
5 | 5 million
5 | 5 thousand
"""
GOLDS = r"""
14
3\sqrt{2}
2\ln 3
2+3i
y = 2x + 1
10^{5}
1 : 2
\dfrac{1}{2}
\sqrt{2}
\pi
(1,2)
\text{B}
Yes
\begin{pmatrix}1\\2\end{pmatrix}
(-\infty, 2]
x \in \mathbb{R}
f(x)=x^2
x^2+y^2=4
\{1,2\}
3:30 PM
\log_{10} 5
n!
90^\circ
A\cup B
\sum_{k=1}^n k^2
\int_0^1 f(x) dx
a_n = 2n
\varnothing
\binom{n}{k}
12\text{ cm}
50\%
-\frac{3}{4}
"""


def pairs(table: str) -> list[tuple[str, str]]:
    """|x| holds the separator, so only one with spaces counts."""
    return [tuple(line.split(" | ", 1)) for line in table.strip().split("\n")]
